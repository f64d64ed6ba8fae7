"""What was run, in a box: what somebody who has the page alone must know to read its numbers."""

from __future__ import annotations

from emoreg.config import OptimizerConfig, PretrainingConfig, RegulationConfig, leaves
from emoreg.config.search_space import describe
from emoreg.config.trial import KINDS_WITHOUT_BALANCE
from emoreg.formatting import counted
from emoreg.report.tables import Table, listed, moment, span
from emoreg.results.study import StudyResults


def facts(study: StudyResults) -> list[tuple[str, str]]:
    """Name and value of each."""
    trial, config = study.config.trial, study.config
    searched = {path: text for path, text, _ in describe(config.search_space)}
    found = {
        "Task": _images(study, "task"),
        "Stimuli": _images(study, "stimuli"),
        "Neutral images": _images(study, "neutral"),
        "Relabelled images": _images(study, "relabelled"),
        "Images": f"{trial.image_size} pixels square",
        "Backbones": listed(study.backbones) + (", from given weights" if trial.weights else ", from random weights"),
        "Pre-training": _stage(trial.pretraining, _searched(searched, "pretraining.epochs", trial.pretraining.epochs))
        + _cooldown(trial.pretraining, searched),
        "Regulation": f"{_regulation(trial.regulation, searched)}; "
        f"{_stage(trial.regulation, _searched(searched, 'regulation.epochs', trial.regulation.epochs))}",
        "Searched": listed([f"{path}: {text}" for path, text in searched.items()]) or "nothing: every trial is as configured",
        "As configured": "what the trials beside the search were run with: regulation and its controls",
        "Seeds": _seeds(study),
        "Confirmed on": _confirmed_on(study),
        "Run": _dates(study),
        "Method": "a reconstruction of Landi, Rodrigues and Chinnici (arXiv:2606.13081), whose full text was not at hand",
    }
    return [(name, value) for name, value in found.items() if value]


def configuration(study: StudyResults) -> Table:
    """Every setting of the trial as configured."""
    return Table(
        caption="Every setting, as configured",
        columns=(("path", "code"), ("value", "code")),
        groups=[("", [(path, str(value)) for path, value in leaves(study.config.trial)])],
        folds=True,
    )


def _images(study: StudyResults, role: str) -> str:
    return "; ".join(
        f"{found.name}, {found.num_outputs} classes or targets: {found.num_train:,} images trained on, "
        f"{found.num_validation:,} for validation, {found.num_test:,} in the test split"
        for found in study.written.images
        if found.role == role
    )


def _searched(searched: dict[str, str], path: str, value: object) -> str:
    return f"{searched[path]} (searched; {value} as configured)" if path in searched else str(value)


def _stage(stage: PretrainingConfig | RegulationConfig, epochs: str) -> str:
    return f"epochs {epochs}, batches of {stage.batch_size}, {_optimizer(stage.optimizer)}, {stage.lr_schedule} learning rate"


def _cooldown(pretraining: PretrainingConfig, searched: dict[str, str]) -> str:
    epochs = _searched(searched, "pretraining.cooldown_epochs", pretraining.cooldown_epochs)
    return "" if epochs == "0" else f"; then a cool-down to 0, epochs {epochs}"


def _optimizer(optimizer: OptimizerConfig) -> str:
    return f"{optimizer.name} at {optimizer.learning_rate:g}, weight decay {optimizer.weight_decay:g}"


def _regulation(regulation: RegulationConfig, searched: dict[str, str]) -> str:
    kind = _searched(searched, "regulation.kind", regulation.kind)
    if regulation.kind in KINDS_WITHOUT_BALANCE and "regulation.kind" not in searched:
        return f"form {regulation.form}, kind {kind}"
    balance = _searched(searched, "regulation.balance", f"{regulation.balance:g}")
    return f"form {regulation.form}, kind {kind}, balance {balance}"


def _seeds(study: StudyResults) -> str:
    parts = [f"search: {study.config.trial.seed}"]
    if study.config.control_trials():
        parts.append(f"controls: {span(study.config.control_seeds)}")
    if study.opening is not None:
        parts.append(f"confirmation: {span(study.opening.seeds)}, on the test split")
    return ", ".join(parts)


def _confirmed_on(study: StudyResults) -> str:
    if study.opening is None:
        return ""
    if not study.opening.has_own_cuts:
        return "what the search's validation leaves of the training split, cut alike for all seeds"
    counts = [f"{found.name}: {found.num_train:,} images" for found in study.confirming.written.images if found.role == "task"]
    images = f" ({listed(counts)})" if counts else ""
    return (
        f"the whole training split of the task, or a subset of num_images{images}, nothing held out, as nothing is selected; "
        "each seed with cuts of its own, alike for all controls"
    )


def _dates(study: StudyResults) -> str:
    runs = [run for home in study.with_confirmation for run in home.runs]
    if not runs:
        return ""
    ended = max((row.ended for row in study.all_trials), default=runs[-1].started)
    devices = listed([*dict.fromkeys(row.device for row in study.all_trials)])
    return f"{moment(runs[0].started)} to {moment(ended)} UTC, {counted(len(runs), 'run')}, on {devices or 'no device yet'}"
