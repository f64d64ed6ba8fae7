"""How numbers, times, controls and parameters are called in what a person reads."""

from __future__ import annotations

from collections.abc import Mapping

from emoreg.config import StudyConfig, Value, control_named


def control_name(control: str) -> str:
    """What a reader calls a control."""
    return control_named(control).label


def format_params(params: Mapping[str, Value]) -> list[str]:
    """The sampled values but the backbone, which stands beside them: ["regulation.balance 0.422"]."""
    return [
        f"{path} {f'{value:.3g}' if isinstance(value, float) else value}"
        for path, value in params.items()
        if path != "backbone"
    ]


def configuration(backbone: str, params: Mapping[str, Value]) -> str:
    """Both in a line: "vit_tiny, regulation.balance 0.422"."""
    return ", ".join([backbone, *format_params(params)])


def by_status(counts: Mapping[str, int]) -> str:
    """How many trials ended how, "15 finished, 3 pruned": a status that none has is left out, but for finished."""
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "finished")


_ACCURACIES = {"val_accuracy": "validation accuracy", "test_accuracy": "test accuracy"}


def percent(share: float) -> str:
    """A share of images as a person reads it: "87.1 %"."""
    return f"{100 * share:.1f} %"


def metric_name(metric: str) -> str:
    """What a reader calls a metric or a column of the records: "validation accuracy", "val_loss"."""
    return _ACCURACIES.get(metric, metric)


def metric_value(metric: str, value: float) -> str:
    """Its value: an accuracy in percent, any other as it is."""
    return percent(value) if metric in _ACCURACIES else f"{value:.4g}"


def metric_text(metric: str, value: float) -> str:
    """Both: "validation accuracy 87.1 %", "val_loss 0.4321"."""
    return f"{metric_name(metric)} {metric_value(metric, value)}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "45 s", "3 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def p_cell(p_value: float) -> str:
    """A p-value, as far as one reads it, in a table: "0.0021", "<0.0001"."""
    return "<0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def p_text(p_value: float) -> str:
    """The same in a sentence: "p = 0.0021", "p < 0.0001"."""
    return "p < 0.0001" if p_value < 1e-4 else f"p = {p_cell(p_value)}"


def of_one_seed(config: StudyConfig) -> str:
    """That a search knows one seed, ", of seed 0 alone": its trials are not to be compared with means over several."""
    return f", of seed {config.trial.seed} alone" if config.seeds_per_trial == 1 else ""


def ordinal(rank: int) -> str:
    """ "2nd", "3rd", "4th": of ranks below 11."""
    return f"{rank}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(rank, 'th') }"


def counted(number: int, what: str) -> str:
    """ "1 trial", "40 trials"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
