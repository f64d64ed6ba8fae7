"""Which trial's network is exported, and what its model card says. Needs neither torch nor Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa

from emoreg.config import TrialConfig, from_json
from emoreg.errors import ConfigError
from emoreg.formatting import control_name, format_params
from emoreg.results.analysis import ranked
from emoreg.results.predictions import agreement
from emoreg.results.records import EvaluationRecord, TrialRecord
from emoreg.results.statistics import share_interval
from emoreg.results.study import StudyResults

_LEAST_DIGITS = 4


def find_trial(study: StudyResults, trial: str) -> tuple[StudyResults, TrialRecord]:
    """The finished trial that is asked for, and the study that it ran in: this one, or its confirmation.

    Args:
        study: in whose search and confirmation it is looked for.
        trial: "best", "confirmed", or an identity, of which the first digits will do.

    Raises:
        ConfigError: where there is no such trial.
    """
    match trial:
        case "best":
            best = ranked(study.trials, study.objectives[0])
            if not best:
                raise ConfigError(f"Run the study first: {study.name!r} has no finished trial of its search")
            return study, best[0]
        case "confirmed":
            return study.confirming, _confirmed(study)
    found = [(home, row) for home in study.with_confirmation for row in home.trials if row.identity.startswith(trial)]
    if len(found) != 1 or len(trial) < _LEAST_DIGITS:
        raise ConfigError(
            f"Copy a trial's identity from a table of {study.name!r}, of which the first {_LEAST_DIGITS} digits may do: "
            f"{trial!r} must name one trial of the study or its confirmation, but it names {len(found) or 'none'}"
        )
    return found[0]


def _confirmed(study: StudyResults) -> TrialRecord:
    """The confirmed configuration that was best on validation, on its first fresh seed: the test set chooses nothing."""
    if study.opening is None:
        raise ConfigError(f"Confirm the study first (`emoreg confirm`): {study.name!r} has no confirmation")
    chosen = max(study.opening.chosen, key=lambda found: found.val_accuracy or 0.0)
    planned = [trial for trial in study.opening.trials if trial.chosen == chosen.identity and trial.control == "regulated"]
    first = min(planned, key=lambda trial: trial.seed)
    record = study.confirming.by_identity.get(first.identity)
    if record is None or record.status != "finished":
        raise ConfigError(
            f"Run the confirmation to its end (`emoreg confirm`): trial {first.identity} of {study.confirming.name!r} must be "
            f"finished, but it is {'not run yet' if record is None else record.status}"
        )
    return record


def model_card(study: StudyResults, home: StudyResults, record: TrialRecord, predictions: pa.Table | None = None) -> str:
    """The model card of a trial's network, in Markdown; ``home`` is the study that it ran in: this one, or its confirmation."""
    evaluations = [row for row in home.evaluations if row.identity == record.identity]
    title = f"{record.task} by {record.backbone} ({control_name(record.control)})"
    return "\n".join(
        [
            *("---", "library_name: emoreg", "tags: [image-classification, emotional-regulation]", "---", ""),
            *(f"# {title}", ""),
            *_description(record),
            *("## Use", "", "```python", "import emoreg", "", 'network = emoreg.load_network("this/folder")'),
            *(
                "scores = network(images)  # B x 3 x S x S, RGB in [0, 1]; the softmax gives probabilities",
                "```",
                "",
            ),
            *("## Numbers", "", "| of | value | 95 % interval | images |", "|---|---|---|---|"),
            *_numbers(study, record, evaluations),
            "",
            *_verdict(study, record),
            *_agreement(predictions),
            *_classes(evaluations),
            *_provenance(home, record),
        ]
    )


def _description(record: TrialRecord) -> Iterator[str]:
    config = from_json(TrialConfig, json.loads(record.config))
    regulation = config.regulation
    if regulation.needs_emotional:
        cooldown = config.pretraining.total_epochs - record.pretraining_epochs
        cooled = f", and {cooldown} more in which the learning rate went to 0" if cooldown else ""
        epochs = f"{record.pretraining_epochs} epochs{cooled}"
        yield f"An encoder ({record.backbone}) was pre-trained on {record.stimuli} for {epochs}."
    if regulation.needs_emotional and regulation.needs_plain:
        configured = "" if record.balance is None else f"{record.balance:.3f} as configured and "
        split = "validation" if record.val_accuracy is not None else "the test split"
        yield (
            f"Its response is balanced against that of a plain one: form {record.form}, kind {record.kind}, balance "
            f"{configured}{record.measured_balance:.3f} on {split}. The method is a "
            "reconstruction of that of arXiv:2606.13081."
        )
    yield f"The trial was of the kind {control_name(record.control)!r}, its network has {record.num_parameters:,} parameters."
    yield ""


def _numbers(study: StudyResults, record: TrialRecord, evaluations: Sequence[EvaluationRecord]) -> Iterator[str]:
    note = " (selected: it flatters)" if record.is_searched else ""
    for split, accuracy, said in (("validation", record.val_accuracy, note), ("test", record.test_accuracy, "")):
        if accuracy is None:
            continue
        num_images = sum(row.num_images for row in evaluations if row.split == split)
        interval = _interval(accuracy, num_images)
        yield f"| {split} accuracy{said} | {100 * accuracy:.1f} % | {interval} | {num_images or ''} |"
    for row in study.confirmed:
        if row.control == "regulated" and _is_planned(study, row.chosen.identity, record):
            mean = row.accuracy
            width = "" if mean.half_width is None else f"± {100 * mean.half_width:.1f} points, over seeds"
            yield f"| test accuracy, mean of {mean.n} seeds | {100 * mean.mean:.1f} % | {width} | |"
    for name, value in json.loads(record.metrics).items():
        yield f"| {name} | {value:.4g} | | |"


def _interval(share: float, n: int) -> str:
    """That of a share of ``n`` images, in percent; empty without images."""
    found = share_interval(share, n) if n else None
    return "" if found is None else f"{100 * found.low:.1f} to {100 * found.high:.1f} %"


def _is_planned(study: StudyResults, chosen: str, record: TrialRecord) -> bool:
    trials = study.opening.trials if study.opening is not None else ()
    return any(trial.identity == record.identity and trial.chosen == chosen for trial in trials)


def _verdict(study: StudyResults, record: TrialRecord) -> Iterator[str]:
    for chosen, verdict in study.verdicts.items():
        if chosen == record.identity or _is_planned(study, chosen, record):
            yield from (f"Confirmation: {verdict.sentence}", "")


def _agreement(predictions: pa.Table | None) -> Iterator[str]:
    """How far the two encoders go together."""
    for split in ("validation", "test") if predictions is not None else ():
        found = agreement(predictions, split)
        if found is not None:
            yield (
                f"On {split} the two encoders, each by its own head, agree on {100 * found.agree:.1f} % of {found.num_images} "
                f"images: both are right on {100 * found.both:.1f} %, the plain one alone on {100 * found.only_plain:.1f} %, "
                f"the emotional one alone on {100 * found.only_emotional:.1f} %."
            )
            yield ""


def _classes(evaluations: Sequence[EvaluationRecord]) -> Iterator[str]:
    """How the classes are recognised, on the test split where it was opened."""
    split = "test" if any(row.split == "test" for row in evaluations) else "validation"
    rows = [row for row in evaluations if row.split == split]
    if rows:
        yield from (
            f"## Classes, on {split}",
            "",
            "| class | recall | 95 % interval | precision | images |",
            "|---|---|---|---|---|",
        )
    for row in rows:
        recall = interval = precision = ""
        if row.num_images:
            share = row.num_correct / row.num_images
            recall, interval = f"{100 * share:.1f} %", _interval(share, row.num_images)
        if row.num_predicted:
            precision = f"{100 * row.num_correct / row.num_predicted:.1f} %"
        yield f"| {row.class_name} | {recall} | {interval} | {precision} | {row.num_images} |"
    if rows:
        yield ""


def _provenance(study: StudyResults, record: TrialRecord) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in study.written.versions.items())
    sets = ", ".join(f"{name} {str(fingerprint)[:12]}" for name, *_, fingerprint in study.written.fingerprints)
    yield from ("## Where it comes from", "")
    yield f"- study {study.name!r}, trial {record.identity} ({record.role}), seed {record.seed}, ended {record.ended}"
    if record.sampled:
        yield f"- found by the search: {', '.join(format_params(record.sampled))}"
    yield f"- image sets: {sets}"
    yield f"- {versions}; commit {study.written.git_commit or 'unknown'}; on {record.device}"
    yield "- intervals of shares are Wilson's, over images; of means over seeds Student's t"
    yield ""
