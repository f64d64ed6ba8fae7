"""Trials without a study of emoreg's: in this process, under Optuna and under Ray Tune."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
import torch

import emoreg
from emoreg.config import RegulationConfig
from emoreg.errors import ConfigError
from emoreg.results.outcome import EndReason
from emoreg.storage.checkpoint import CHECKPOINT
from emoreg.tuning import adapters
from emoreg.tuning.adapters import resolved_trial
from emoreg.tuning.images import image_loader
from emoreg.tuning.trainable import given_device
from tests.helpers.trials import TINY, run, tiny

SPACE = {"regulation.balance": emoreg.Float(0.1, 0.9)}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def wild() -> emoreg.TrialConfig:
    """A trial that diverges."""
    optimizer = emoreg.OptimizerConfig(name="sgd", learning_rate=1e30, gradient_clip=None)
    return dataclasses.replace(TINY, regulation=dataclasses.replace(TINY.regulation, optimizer=optimizer))


def test_a_trial_in_this_process_is_the_trainer_s_and_is_not_trained_again(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = emoreg.run_trial(TINY, storage=str(storage), device="cpu")
    expected, _, _ = run(TINY, storage, folder=tmp_path / "alone")
    assert (outcome.end, outcome.val_accuracy, outcome.val_loss) == (
        EndReason.COMPLETED,
        expected.val_accuracy,
        expected.val_loss,
    )
    assert outcome.test_accuracy is None
    identity = resolved_trial(TINY, image_loader(str(storage))).identity
    assert (storage / "trials" / "trials" / identity / CHECKPOINT).exists()
    monkeypatch.setattr(torch.Tensor, "backward", None)  # a step would fail
    assert emoreg.run_trial(TINY, storage=str(storage), device="cpu") == outcome


def test_a_trial_that_diverges_says_so(storage: Path) -> None:
    outcome = emoreg.run_trial(wild(), storage=str(storage), device="cpu")
    assert outcome.end == EndReason.DIVERGED
    assert "not finite at step" in (outcome.message or "")


def test_what_cannot_run_is_refused_before_it_is_trained(storage: Path) -> None:
    with pytest.raises(ConfigError, match="Give a folder of this machine"):
        emoreg.run_trial(TINY, storage="s3://bucket/runs")
    with pytest.raises(ConfigError, match="resnt18"):
        emoreg.run_trial(tiny(backbone="resnt18"), storage=str(storage))


def test_an_identity_follows_the_images_and_not_their_path(storage: Path) -> None:
    load_images = image_loader(str(storage))
    plain = resolved_trial(tiny(control="plain"), load_images)
    assert resolved_trial(tiny(control="plain", stimuli__num_images=12), load_images).identity == plain.identity
    assert resolved_trial(tiny(control="plain", task__num_images=19), load_images).identity != plain.identity


def test_optuna_suggests_and_is_told_every_epoch(storage: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.optimize(emoreg.objective(TINY, SPACE, storage=str(storage), device="cpu"), n_trials=2)
    for trial in study.trials:
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert 0.1 <= trial.params["regulation.balance"] <= 0.9
        assert [*trial.intermediate_values] == [1, 2]
        assert trial.value == trial.intermediate_values[2]


class Always(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return True


def test_what_optuna_prunes_stops_and_what_fails_by_itself_is_pruned(storage: Path) -> None:
    study = optuna.create_study(direction="maximize", pruner=Always())
    objective = emoreg.objective(TINY, SPACE, storage=str(storage), device="cpu")
    study.optimize(objective, n_trials=1)
    assert [*study.trials[0].intermediate_values] == [1], "it was stopped after its first epoch"
    study.optimize(emoreg.objective(wild(), {}, storage=str(storage), device="cpu"), n_trials=1)
    space = {"regulation.kind": emoreg.Choice(("learnable",)), "regulation.balance": emoreg.Float(0.0, 0.0)}
    study.optimize(emoreg.objective(TINY, space, storage=str(storage), device="cpu"), n_trials=1)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.PRUNED] * 3
    one_epoch = dataclasses.replace(TINY, regulation=RegulationConfig(epochs=1, batch_size=8))
    study.optimize(emoreg.objective(one_epoch, SPACE, storage=str(storage), device="cpu"), n_trials=1)
    assert study.trials[-1].state == optuna.trial.TrialState.COMPLETE, "to stop after the last epoch would save nothing"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_tune_trains_reports_restores_and_hears_of_divergence(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the user's own tuner; the second trial's machine fails once, after its first epoch."""
    from ray import tune

    monkeypatch.delenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS")  # a user's Tune keeps its own log
    monkeypatch.chdir(storage.parent)
    trial = tiny(regulation__epochs=3)
    train = emoreg.trainable(trial, storage=storage.name)
    marker = tmp_path / "has failed"

    def failing_once(params: dict[str, object]) -> None:
        report = tune.report

        def report_and_fail(metrics: dict[str, object], **kwargs: object) -> None:
            report(metrics, **kwargs)
            if metrics["epoch"] == 1 and params["regulation.balance"] == 0.75 and not marker.exists():
                marker.touch()
                raise OSError("the machine")

        tune.report = report_and_fail
        try:
            train(params)
        finally:
            tune.report = report

    class Heard(tune.Callback):
        """What Tune heard of each balance: its own log of a trial that it restores may lose rows (a copy that is older)."""

        def __init__(self) -> None:
            self.results: dict[float, list[dict[str, Any]]] = {0.25: [], 0.75: []}

        def on_trial_result(self, iteration: int, trials: object, trial: Any, result: dict[str, Any], **_: object) -> None:
            self.results[trial.config["regulation.balance"]].append(result)

    heard = Heard()
    results = tune.Tuner(
        failing_once,
        param_space={"regulation.balance": tune.grid_search([0.25, 0.75])},
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "tune"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
            callbacks=[heard],
        ),
    ).fit()
    assert marker.exists()
    assert not results.errors
    for balance, told in heard.results.items():
        outcome, _, _ = run(tiny(regulation__epochs=3, regulation__balance=balance), storage, folder=tmp_path / str(balance))
        assert [result["epoch"] for result in told] == [1, 2, 3], "no epoch is reported twice, and none is lost"
        assert (told[-1]["val_accuracy"], told[-1]["val_loss"]) == (outcome.val_accuracy, outcome.val_loss)

    (result,) = tune.Tuner(
        emoreg.trainable(wild(), storage=str(storage)),
        run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0),
    ).fit()
    assert result.error is None
    assert math.isnan(result.metrics["val_accuracy"])


def test_metrics_of_a_user_s_own_are_reported_to_tune(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray import tune

    from emoreg.results.records import EpochRecord

    told: list[dict[str, object]] = []
    monkeypatch.setattr(tune, "report", lambda metrics, checkpoint: told.append(metrics))
    row = EpochRecord(
        identity="x",
        stage="regulation",
        epoch=2,
        step=2,
        train_loss=1.0,
        train_accuracy=None,
        val_loss=0.5,
        val_accuracy=0.7,
        learning_rate=0.1,
        images_per_second=1.0,
        seconds=1.0,
        measured_balance=0.5,
        measured_balance_std=0.0,
        metrics=json.dumps({"val_top3": 0.9}),
    )
    reporter = adapters._ToTune(tmp_path, num_reported=1)
    reporter.report(row)
    reporter.report(dataclasses.replace(row, epoch=1))
    assert told == [{"val_accuracy": 0.7, "val_loss": 0.5, "epoch": 2, "val_top3": 0.9}]


def test_a_gpu_that_ray_gives_away_and_torch_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^Install a CUDA build of torch on .* Ray gives a GPU away there and torch"):
        given_device()
