from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import emoreg
from emoreg.config import CONTROLS, ImageSetConfig, TrialConfig, replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.data import cut_validation, load
from emoreg.data.batches import Batches
from emoreg.data.readers.openmoji import FACES
from emoreg.errors import ConfigError, ImageSetError, Interrupted
from emoreg.results.outcome import EndReason, Outcome
from emoreg.seeding import derive_seed, generator
from emoreg.storage.checkpoint import CHECKPOINT, State
from emoreg.storage.housekeeping import entries
from emoreg.training import trial
from emoreg.training.backbones import Encoder, create_encoder
from emoreg.training.checkpointing import LoopState
from emoreg.training.context import TrialContext
from emoreg.training.events import BalanceSample, Confusion, Experienced, ImagesSample
from emoreg.training.learners import Learner
from emoreg.training.optim import reproducible
from emoreg.training.stages import Stage, pretraining_stage
from tests.helpers.trials import (
    CPU,
    RANDOM,
    TINY,
    WRITTEN_DOWN,
    Recorder,
    Stop,
    equal,
    experience_folders,
    identity_of,
    load_state,
    run,
    same,
    tiny,
)

PACKAGE = str(Path(emoreg.__file__).parent)


def task_batches(config: TrialConfig, storage: Path) -> Batches:
    task = load(config.task, image_size=config.image_size, storage=storage)
    train, _ = cut_validation(
        task.train, config.task.validation_fraction, seed=config.task.split_seed, num_images=config.task.num_images
    )
    return Batches(train, device=CPU)


def train_alone(config: TrialConfig, storage: Path, encoder: Encoder, head_seed: int) -> tuple[list[float], list[Tensor]]:
    """One encoder and one head on the task, in a loop that shares no code with the trainer's: losses by epoch and weights."""
    settings = config.regulation
    with reproducible(True):
        torch.manual_seed(head_seed)
        head = nn.Linear(encoder.width, 10)
        parameters = [*encoder.parameters(), *head.parameters()]
        decayed = [p for p in parameters if p.dim() > 1]
        others = [p for p in parameters if p.dim() <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
        batches, draws = task_batches(config, storage), generator(config.seed, "task batches")
        num_steps = settings.epochs * 3  # 20 images in batches of 8
        warmup = round(0.05 * num_steps)
        torch.manual_seed(derive_seed(config.seed, "regulation"))
        losses, step = [], 0
        encoder.train()
        for _ in range(settings.epochs):
            total, count = 0.0, 0
            for images, targets in batches.epoch(settings.batch_size, settings.augmentation, 10, draws):
                for group in optimizer.param_groups:
                    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))
                    group["lr"] = 1e-3 * ((step + 1) / (warmup + 1) if step < warmup else cosine)
                loss = F.cross_entropy(head(encoder(images)), targets)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                total += float(loss.detach().double()) * len(images)
                count += len(images)
                step += 1
            losses.append(total / count)
    return losses, [p.detach() for p in parameters]


def weights_of(network: dict[str, Tensor], *prefixes: str) -> list[Tensor]:
    """Parameters under the prefixes, without BatchNorm's statistics."""
    kept = [(key, value) for key, value in network.items() if key.startswith(prefixes)]
    return [value for key, value in kept if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]


def test_balance_zero_is_the_plain_backbone_to_the_bit_and_costs_no_more(storage: Path) -> None:
    config = tiny(regulation__balance=0.0, drop_path=0.1, regulation__augmentation__flip=True)
    config = replace_paths(config, {"stimuli.name": "folder", "stimuli.path": "/nowhere"})  # never looked at
    result, recorder, network = run(config, storage)
    seed = derive_seed(config.seed, "plain encoder")
    encoder = create_encoder("test_resnet", image_size=16, drop_path=0.1, weights=None, seed=seed)
    losses, parameters = train_alone(config, storage, encoder, derive_seed(config.seed, "plain head"))
    assert recorder.losses("regulation") == losses
    found = weights_of(network, "plain.", "plain_head.")
    assert len(found) == len(parameters)
    assert all(torch.equal(a, b) for a, b in zip(found, parameters, strict=True))
    assert result.num_parameters == sum(p.numel() for p in parameters)
    assert not any("emotional" in key for key in network)
    assert recorder.epochs("pretraining") == []
    assert not any(isinstance(event, Experienced) for event in recorder.events)
    assert not (storage / "experience").exists()
    assert result.measured_balance == 0.0
    both, _, _ = run(tiny(pretraining__epochs=0, regulation__epochs=1), storage)
    assert both.num_parameters == 2 * result.num_parameters


def test_balance_one_is_the_fine_tuned_emotional_encoder_to_the_bit(storage: Path) -> None:
    config = tiny(regulation__balance=1.0)
    result, recorder, network = run(config, storage)
    (folder,) = experience_folders(storage)
    experience = load_state(storage / "experience" / folder / "1.ckpt")
    assert experience is not None
    encoder = create_encoder("test_resnet", image_size=16, drop_path=0.0, weights=None, seed=1)
    encoder.load_state_dict(
        {key.removeprefix("encoder."): v for key, v in experience["network"].items() if key.startswith("encoder.")}
    )
    losses, parameters = train_alone(config, storage, encoder, derive_seed(config.seed, "emotional head"))
    assert recorder.losses("regulation") == losses
    found = weights_of(network, "emotional.", "emotional_head.")
    assert all(torch.equal(a, b) for a, b in zip(found, parameters, strict=True))
    assert not any(key.startswith("plain") for key in network)
    assert result.num_parameters == sum(p.numel() for p in parameters)


GOLDEN = {
    "pretraining": [2.340604, 2.299788, 2.204653],
    "regulation": [2.301649, 2.215048, 2.170959],
}


def test_the_golden_loss_trace(storage: Path) -> None:
    """A change that keeps behaviour reproduces these; one that does not must say so, and raise experience's version."""
    three = {"pretraining.epochs": 3, "regulation.epochs": 3, "regulation.kind": "learnable", "drop_path": 0.1}
    _, recorder, _ = run(replace_paths(TINY, {**WRITTEN_DOWN, **three}), storage)
    for stage, losses in GOLDEN.items():
        assert recorder.losses(stage) == pytest.approx(losses, rel=2e-3), stage  # processors differ by up to 1e-3


def test_deterministic_is_the_same_to_the_bit_run_after_run(prepared: Path, tmp_path: Path) -> None:
    numbers: list[list[dict[str, Any]]] = []
    networks: list[dict[str, Tensor]] = []
    for name in ("first", "second"):
        storage = tmp_path / name
        storage.mkdir()
        (storage / "imagesets").symlink_to(prepared / "imagesets")
        torch.manual_seed(len(numbers))
        _, recorder, network = run(replace_paths(TINY, RANDOM), storage)
        numbers.append(recorder.numbers())
        networks.append(network)
    assert numbers[0] == numbers[1]
    assert equal(*networks)


Ran = tuple[Outcome, Recorder, dict[str, Tensor]]


@pytest.fixture(scope="module")
def undisturbed(
    request: pytest.FixtureRequest, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrialConfig, Ran, list[State | None]]:
    """A trial with everything random, run straight to its end."""
    storage = tmp_path_factory.mktemp("undisturbed")
    (storage / "imagesets").symlink_to(prepared / "imagesets")
    config = replace_paths(TINY, {**RANDOM, "backbone": request.param, "pretraining.epochs": 2})
    outcome = run(config, storage)
    return config, outcome, final_states(config, storage)


@pytest.mark.parametrize("stopped", [("pretraining", 1), ("pretraining", 2), ("regulation", 1), ("regulation", 2)])
@pytest.mark.parametrize("undisturbed", ["test_resnet"], indirect=True)  # a ViT is stopped after every step, below
def test_a_killed_trial_goes_on_to_the_bit(
    storage: Path, stopped: tuple[str, int], undisturbed: tuple[TrialConfig, Ran, list[State | None]]
) -> None:
    config, (whole, straight, expected), _ = undisturbed
    with pytest.raises(Stop):
        run(config, storage, Recorder(stopped), checkpoint_seconds=0)
    again, recorder, network = run(config, storage)
    assert equal(network, expected)
    assert recorder.numbers() == straight.numbers()  # every epoch once, in order
    for name in ("end", "val_accuracy", "val_loss", "measured_balance", "num_parameters", "regulation_epochs"):
        assert getattr(again, name) == getattr(whole, name)
    for result, events in ((again, recorder), (whole, straight)):
        assert result.pretraining.paid_seconds == pytest.approx(sum(row.seconds for row in events.epochs("pretraining")))
        assert result.regulation_seconds == pytest.approx(sum(row.seconds for row in events.epochs("regulation")))


def place(config: TrialConfig, storage: Path) -> tuple[str, int, int]:
    """How far the states on disk are: stage, epochs, and steps of the next one."""
    state = load_state(storage / identity_of(config) / CHECKPOINT)
    if state is not None:
        return "regulation", state["epoch"], state["step_in_epoch"]
    names = [path.stem.split("+") for path in (storage / "experience").glob("*/*") if path.suffix in (".ckpt", ".partial")]
    epochs, steps = max((int(name[0]), int(name[1]) if len(name) > 1 else 0) for name in names)
    return "pretraining", epochs, steps


def final_states(config: TrialConfig, storage: Path) -> list[State | None]:
    """What the stages left on disk at their ends."""
    (folder,) = experience_folders(storage)
    experience = storage / "experience" / folder / f"{config.pretraining.epochs}.ckpt"
    return [load_state(path) for path in (experience, storage / identity_of(config) / CHECKPOINT)]


@pytest.mark.parametrize("undisturbed", ["test_resnet", "test_vit"], indirect=True)
def test_a_trial_stopped_after_every_step_goes_on_to_the_bit(
    storage: Path, undisturbed: tuple[TrialConfig, Ran, list[State | None]]
) -> None:
    config, (whole, straight, expected), states = undisturbed
    places = []
    while True:
        with contextlib.suppress(Interrupted):
            again, recorder, network = run(config, storage, should_stop=lambda: True)
            break
        places.append(place(config, storage))
    pretraining = [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    regulation = [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert places == [("pretraining", *at) for at in pretraining] + [("regulation", *at) for at in regulation]
    assert equal(network, expected)
    assert recorder.numbers() == straight.numbers()
    assert same(dataclasses.asdict(again), dataclasses.asdict(whole))
    assert same(final_states(config, storage), states)  # the optimizers, all streams and the epochs
    assert not list(storage.rglob("*.tmp"))


def test_a_finished_trial_is_not_trained_again(storage: Path) -> None:
    config = tiny(regulation__epochs=1)
    first, recorder, network = run(config, storage)
    again, second, same = run(config, storage, evaluate_on="test")
    assert equal(network, same)
    assert second.epochs("regulation") == recorder.epochs("regulation")  # clock included: read, not run
    assert dataclasses.replace(again, test_accuracy=None) == first
    assert again.test_accuracy is not None


def test_a_finished_trial_keeps_its_network_and_no_optimizer(storage: Path) -> None:
    config = tiny()
    with pytest.raises(Stop):
        run(config, storage, Recorder(("regulation", 1)), checkpoint_seconds=0)
    path = storage / identity_of(config) / CHECKPOINT
    unfinished = path.stat().st_size
    _, _, network = run(config, storage)
    state = load_state(path)
    assert state is not None
    assert state.keys() == {"network", "oom", "epoch", "history", "class_names", "precision", "compile"}
    assert state["class_names"] == [str(digit) for digit in range(10)]
    weights = sum(value.nbytes for value in network.values())
    assert path.stat().st_size < 1.1 * weights
    assert unfinished > 2.9 * weights


def test_a_trial_alone_keeps_its_things_as_one_of_a_study_does(storage: Path) -> None:
    trial_ = resolve_trial(tiny(pretraining__epochs=1, regulation__epochs=1))
    context = TrialContext.local(trial_, storage=str(storage), study_name="mine", device=CPU)
    outcome = trial.run_trial(trial_, context)  # without a reporter
    assert outcome.end == EndReason.COMPLETED
    assert (storage / "mine" / "trials" / trial_.identity / CHECKPOINT).is_file()
    (entry,) = entries(context.store.files)
    assert [(use.study, use.identity) for use in entry.uses] == [("mine", trial_.identity)]


def test_three_frames_lie_between_a_trial_s_caller_and_an_optimizer_s_step(storage: Path) -> None:
    ways = set()

    def note(*_: Any) -> None:
        frames = traceback.extract_stack()
        ways.add(tuple(frame.name for frame in frames if frame.filename.startswith(PACKAGE)))

    handle = register_optimizer_step_pre_hook(note)
    try:
        run(tiny(regulation__epochs=1), storage)
    finally:
        handle.remove()
    assert ways == {("run_trial", "fit", "_step")}  # of both stages


def test_events_come_in_order_and_the_test_split_stays_shut(storage: Path) -> None:
    config = tiny(regulation__kind="dynamic", regulation__epochs=1)
    result, recorder, _ = run(config, storage)
    kinds = [(type(event).__name__, getattr(event, "stage", getattr(event, "split", None))) for event in recorder.events]
    assert kinds == [
        ("ImagesSample", "pretraining"),
        ("EpochRecord", "pretraining"),
        ("Experienced", None),
        ("ImagesSample", "regulation"),
        ("EpochRecord", "regulation"),
        ("BalanceSample", None),
        ("Confusion", "validation"),
    ]
    sample, balance, confusion = recorder.events[0], recorder.events[5], recorder.events[6]
    experienced = recorder.events[2]
    assert isinstance(experienced, Experienced)
    assert (experienced.epochs, experienced.cost.waiting_seconds) == (1, 0.0)
    assert experienced.cost.paid_seconds == experienced.cost.experience_seconds == result.pretraining.paid_seconds
    assert isinstance(sample, ImagesSample)
    assert sample.images.dtype == torch.uint8
    assert len(sample.captions) == len(sample.images) == 16
    assert isinstance(confusion, Confusion)
    num_validation = int(confusion.counts.sum())
    (row,) = recorder.epochs("regulation")
    assert row.val_accuracy == float(confusion.counts.diagonal().sum()) / num_validation
    assert isinstance(balance, BalanceSample)
    assert row.measured_balance == pytest.approx(float(balance.balance.mean()))
    assert row.measured_balance_std == pytest.approx(float(balance.balance.std(correction=0)))
    assert len(balance.balance) == num_validation


def initial_network(config: TrialConfig, storage: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The regulated network as it enters stage 2."""
    found: list[dict[str, Tensor]] = []

    real = trial.fit

    def stop(stage: Stage, learner: Learner, **kwargs: Any) -> Any:
        if stage.name == "pretraining":
            return real(stage, learner, **kwargs)
        found.append({key: value.clone() for key, value in learner.network.state_dict().items()})
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(trial, "fit", stop)
        with pytest.raises(Stop):
            run(config, storage)
    return found[0]


def part(network: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key: value for key, value in network.items() if key.startswith(prefix)}


def test_controls_are_paired_by_seed(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    neutral = ImageSetConfig(name="digits", split_seed=5)
    stimuli = ImageSetConfig(name="openmoji", num_images=16)
    base = dataclasses.replace(
        TINY, stimuli=stimuli, neutral=neutral, relabelled=dataclasses.replace(stimuli, target="subgroup")
    )
    controls = tuple(CONTROLS)
    starts = {c: initial_network(dataclasses.replace(base, control=c), storage, monkeypatch) for c in controls}
    for control, start in starts.items():
        if control not in ("emotional", "wide"):
            assert equal(part(start, "plain"), part(starts["regulated"], "plain")), control
        if control not in ("plain", "compute_matched", "wide"):
            assert equal(part(start, "emotional_head"), part(starts["regulated"], "emotional_head")), control
    assert part(starts["emotional"], "plain") == part(starts["plain"], "emotional") == {}
    emotional = {c: part(start, "emotional.") for c, start in starts.items()}
    assert equal(emotional["emotional"], emotional["regulated"])
    for control in ("untrained", "shuffled", "neutral"):
        assert not equal(emotional[control], emotional["regulated"]), control
    # untrained is the others' beginning
    seed = derive_seed(0, "emotional encoder")
    fresh = create_encoder("test_resnet", image_size=16, drop_path=0.0, weights=None, seed=seed)
    assert equal({f"emotional.{key}": value for key, value in fresh.state_dict().items()}, emotional["untrained"])
    seed = derive_seed(0, "plain encoder")
    double = create_encoder("test_resnet", image_size=16, drop_path=0.0, weights=None, seed=seed, width=2)
    assert equal({f"plain.{key}": value for key, value in double.state_dict().items()}, part(starts["wide"], "plain."))
    other = initial_network(dataclasses.replace(base, seed=1), storage, monkeypatch)
    assert not torch.equal(other["plain_head.weight"], starts["regulated"]["plain_head.weight"])


def test_an_ensemble_is_two_plain_networks_of_different_seeds(storage: Path) -> None:
    config = tiny(regulation__optimizer__gradient_clip=10.0, regulation__optimizer__weight_decay=0.0)  # of each, not of both
    _, _, ensemble = run(dataclasses.replace(config, control="ensemble"), storage)
    _, _, alone = run(dataclasses.replace(config, control="plain"), storage)
    start = create_encoder("test_resnet", image_size=16, drop_path=0.0, weights=None, seed=derive_seed(0, "plain encoder"))
    for key, value in start.model.named_parameters():
        if value.dim() > 1:
            ways = [(state[f"plain.model.{key}"] - value.detach()).abs().mean() for state in (ensemble, alone)]
            moved, apart = map(float, ways)
            assert moved == pytest.approx(apart, rel=0.1), key
    assert not equal(part(ensemble, "plain."), {f"plain.{k[10:]}": v for k, v in part(ensemble, "emotional.").items()})
    assert not (storage / "experience").exists()


def test_the_neutral_control_sees_as_many_images_as_the_stimuli(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    neutral = ImageSetConfig(name="digits", split_seed=5, validation_fraction=0.0)
    config = dataclasses.replace(TINY, neutral=neutral, control="neutral")
    seen = []
    real = trial.fit

    def watch(stage: Stage, learner: Learner, **kwargs: Any) -> Any:
        if stage.name == "pretraining":
            seen.append(len(stage.train))
        return real(stage, learner, **kwargs)

    monkeypatch.setattr(trial, "fit", watch)
    run(config, storage)
    run(replace_paths(config, {"stimuli.num_images": 12}), storage)
    run(replace_paths(config, {"neutral.split_seed": 6}), storage)
    assert seen == [16, 12, 16]
    assert len(experience_folders(storage)) == 3  # other images, another experience
    few = dataclasses.replace(config, neutral=dataclasses.replace(neutral, validation_fraction=0.99))
    with pytest.raises(ImageSetError, match="as many training images, 16, but it has 14"):
        run(few, storage)


def test_shuffled_pretrains_on_permuted_labels(storage: Path) -> None:
    config = tiny(pretraining__epochs=2)
    _, real, _ = run(config, storage)
    _, shuffled, _ = run(dataclasses.replace(config, control="shuffled"), storage)
    assert real.losses("pretraining") != shuffled.losses("pretraining")
    assert len(experience_folders(storage)) == 2


def test_bf16_runs_on_cpu(storage: Path) -> None:
    exact, _, _ = run(tiny(pretraining__epochs=0), storage)
    config = replace_paths(tiny(pretraining__epochs=0), {"deterministic": False, "precision": "bf16"})
    rough, recorder, network = run(config, storage)
    assert all(value.dtype == torch.float32 for key, value in network.items() if key.startswith("plain_head"))
    assert rough.val_loss != exact.val_loss
    assert rough.val_loss == pytest.approx(exact.val_loss, rel=0.05)
    assert len(recorder.epochs("regulation")) == 2


@pytest.mark.parametrize(("form", "kind"), [("conditioned", "learnable"), ("loss", "random")])
def test_the_other_forms_run_and_keep_what_they_freeze(storage: Path, form: str, kind: str) -> None:
    _, _, network = run(tiny(regulation__form=form, regulation__kind=kind), storage)
    (folder,) = experience_folders(storage)
    experience = load_state(storage / "experience" / folder / "1.ckpt")
    assert experience is not None
    before, after = weights_of(experience["network"], "encoder."), weights_of(network, "emotional.")
    assert all(map(torch.equal, before, after)) == (form == "conditioned")
    if form == "conditioned":
        assert torch.equal(network["emotion_head.weight"], experience["network"]["head.weight"])
        assert float(network["raw_balance"]) != 0.0


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_frozen_encoder_knows_the_task_s_images_and_goes_on_to_the_bit(
    storage: Path, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(regulation__freeze_emotional=True, pretraining__epochs=epochs)
    thawed = initial_network(replace_paths(config, {"regulation.freeze_emotional": False}), storage, monkeypatch)
    frozen = initial_network(config, storage, monkeypatch)
    differing = {key for key, value in frozen.items() if not torch.equal(value, thawed[key])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert differing == {key for key in frozen if key.startswith("emotional.") and key.endswith(statistics)}
    _, straight, expected = run(config, storage, folder=storage / "straight")
    assert equal(part(expected, "emotional."), part(frozen, "emotional."))
    with pytest.raises(Stop):
        run(config, storage, Recorder(("regulation", 1)), checkpoint_seconds=0)
    _, recorder, network = run(config, storage)
    assert equal(network, expected)
    assert recorder.numbers() == straight.numbers()


def test_divergence_leaves_no_checkpoint_from_after_it(storage: Path) -> None:
    config = replace_paths(
        TINY,
        {"regulation.optimizer.name": "sgd", "regulation.optimizer.learning_rate": 1e30, "pretraining.epochs": 0},
    )
    outcome, _, _ = run(config, storage, checkpoint_seconds=0)
    assert (outcome.end, outcome.status, outcome.diverged_stage) == (EndReason.DIVERGED, "pruned", "regulation")
    assert outcome.diverged_step is not None
    assert 1 <= outcome.diverged_step <= 6
    assert outcome.message == f"the loss of regulation is not finite at step {outcome.diverged_step}"
    state = load_state(storage / identity_of(config) / "trial.ckpt")
    assert state is not None
    assert state["step"] == outcome.diverged_step
    assert all(math.isfinite(loss) for loss in state["losses"])
    again, _, _ = run(config, storage)
    assert (again.end, again.diverged_step) == (outcome.end, outcome.diverged_step)


def test_a_trial_that_diverges_late_keeps_what_it_had_measured(storage: Path) -> None:
    config = tiny(regulation__epochs=3, pretraining__epochs=2)

    class Wild(Recorder):
        """Makes weights infinite once the first epoch of regulation is done."""

        def report(self, event: Any) -> None:
            super().report(event)
            if self.losses("regulation") and not self.losses("regulation")[1:]:
                learners[-1].network.get_parameter("plain_head.weight").data.mul_(math.inf)

    learners: list[Learner] = []
    real = trial.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "fit", lambda stage, learner, **kwargs: learners.append(learner) or real(stage, learner, **kwargs))
        outcome, recorder, _ = run(config, storage, Wild())
    (row,) = recorder.epochs("regulation")
    assert (outcome.end, outcome.regulation_epochs, outcome.val_accuracy) == (EndReason.DIVERGED, 1, row.val_accuracy)
    assert outcome.regulation_seconds == row.seconds
    paid = sum(row.seconds for row in recorder.epochs("pretraining"))
    assert (outcome.pretraining.paid_seconds, outcome.pretraining.experience_seconds) == (paid, paid)
    wild = replace_paths(config, {"pretraining.optimizer.name": "sgd", "pretraining.optimizer.learning_rate": 1e30})
    outcome, _, _ = run(wild, storage)
    assert (outcome.end, outcome.diverged_stage) == (EndReason.DIVERGED, "pretraining")
    assert outcome.pretraining.experience_seconds is None


def test_a_torn_checkpoint_costs_time_and_nothing_else(storage: Path) -> None:
    config = tiny()
    first, _, network = run(config, storage)
    path = storage / identity_of(config) / "trial.ckpt"
    path.write_bytes(path.read_bytes()[:-10])
    again, _, same = run(config, storage)
    assert equal(network, same)
    assert again.val_accuracy == first.val_accuracy
    assert path.with_name("trial.ckpt.bad").exists()


def test_the_relabelled_control_learns_other_labels_of_the_very_images(storage: Path) -> None:
    stimuli = ImageSetConfig(name="openmoji", num_images=12, validation_fraction=0.1)
    labels = ImageSetConfig(name="openmoji", target="subgroup", num_images=7)
    config = dataclasses.replace(TINY, stimuli=stimuli, relabelled=labels)
    load_images, stages = partial(load, storage=storage), {}
    for name in ("regulated", "relabelled"):
        stages[name] = pretraining_stage(resolve_trial(dataclasses.replace(config, control=name)), load_images, CPU)
    affect, groups = stages["regulated"], stages["relabelled"]
    assert affect.validation is not None
    assert groups.validation is not None
    every = torch.arange(12)
    assert torch.equal(affect.train.pictures(every), groups.train.pictures(every))
    assert (len(affect.validation), len(groups.train)) == (len(groups.validation), 12)
    assert (affect.image_set.num_outputs, groups.image_set.num_outputs) == (3, len(FACES))
    outcome, _, _ = run(dataclasses.replace(config, control="relabelled"), storage)
    run(config, storage)
    assert outcome.end == EndReason.COMPLETED
    assert len(experience_folders(storage)) == 2, "other labels are another experience"
    other = dataclasses.replace(config, relabelled=ImageSetConfig(name="digits"), control="relabelled")
    with pytest.raises(ImageSetError, match="relabelled images must be the stimuli's to the pixel, but 'digits' lacks"):
        run(other, storage)


def test_a_task_without_validation_images_is_refused(storage: Path) -> None:
    with pytest.raises(ImageSetError, match=r"Raise .*0\.0001 of the 14\d\d images of 'digits' is none"):
        run(tiny(task__validation_fraction=0.0001), storage)


def test_a_tested_trial_that_holds_nothing_out_is_trained_alike_and_measured_on_the_test_split(storage: Path) -> None:
    with pytest.raises(ImageSetError, match=r"Raise task\.validation_fraction"):
        run(tiny(task__validation_fraction=0.0), storage)
    metrics: dict[str, Any] = {"metrics": ("macro_f1",), "probes": ("emotion_share",)}
    held_out, _, network = run(tiny(**metrics), storage, evaluate_on="test")
    outcome, recorder, same_network = run(tiny(task__validation_fraction=0.0, **metrics), storage, evaluate_on="test")
    assert equal(network, same_network), "the 20 images are the same, and evaluating changes nothing"
    assert (outcome.val_accuracy, outcome.val_loss) == (None, None)
    assert (outcome.test_accuracy, outcome.measured_balance) == (held_out.test_accuracy, held_out.measured_balance)
    assert outcome.metrics == {name: value for name, value in held_out.metrics.items() if name.startswith("test_")}
    rows = recorder.epochs("regulation")
    assert [(row.val_accuracy, row.val_loss, row.metrics) for row in rows] == [(None, None, "{}")] * 2
    assert {event.split for event in recorder.events if isinstance(event, Confusion)} == {"test"}
    again, _, _ = run(tiny(task__validation_fraction=0.0, **metrics), storage, evaluate_on="test")
    assert again.test_accuracy == outcome.test_accuracy, "its last checkpoint is its answer"


def test_a_last_update_that_diverges_is_found_on_the_test_split(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(task__validation_fraction=0.0, regulation__epochs=1, regulation__optimizer__gradient_clip=None)
    num_steps, step = 3, LoopState.add_step

    def spoil_last(self: LoopState, *args: Any) -> None:
        step(self, *args)
        if self.stage == "regulation" and self.step == num_steps:
            next(iter(self.network.parameters())).data.fill_(math.nan)

    monkeypatch.setattr(LoopState, "add_step", spoil_last)
    outcome, _, _ = run(config, storage, evaluate_on="test")
    assert (outcome.end, outcome.diverged_stage, outcome.diverged_step) == (EndReason.DIVERGED, "regulation", num_steps)
    assert outcome.test_accuracy is None


@pytest.fixture
def real_valued() -> ImageSetConfig:
    """Stimuli whose targets are valence and arousal."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the data of {folder} are not on this machine")
    return ImageSetConfig(name="oasis", path=str(folder), target="regression", num_images=16)


def test_real_valued_stimuli_pretrain_too(storage: Path, real_valued: ImageSetConfig) -> None:
    config = dataclasses.replace(tiny(regulation__epochs=1), stimuli=real_valued)
    _, recorder, _ = run(config, storage)
    (row,) = recorder.epochs("pretraining")
    assert row.train_accuracy is None
    assert row.val_loss is not None
    for path, value, message in (
        ("pretraining.augmentation.mixup", 0.4, "mixup and cutmix to 0: they mix classes"),
        ("pretraining.sampling", "balanced", "sampling to natural and class_weights to none: they go by class"),
        ("pretraining.class_weights", "sqrt", "sampling to natural and class_weights to none: they go by class"),
        ("regulation.form", "conditioned", "form='conditioned' takes the softmax of emotion classes"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(replace_paths(config, {path: value}), storage)
    with pytest.raises(ConfigError, match="a task is classified"):
        run(dataclasses.replace(config, task=real_valued), storage)


FRESH = """
import json, sys, torch
from pathlib import Path
from tests.helpers.trials import Recorder, run, tiny
torch.set_num_threads(1)
recorder = Recorder()
run(tiny(**json.loads(sys.argv[1])), Path(sys.argv[2]), recorder)
print(json.dumps(recorder.numbers()))
"""


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.usefixtures("torch_threads")
def test_a_trial_between_others_in_one_process_is_as_in_a_process_of_its_own(prepared: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    first = {"deterministic": False}
    other = {**{path.replace(".", "__"): value for path, value in RANDOM.items()}, "backbone": "test_vit", "seed": 7}

    def storage(name: str) -> Path:
        """A storage with the prepared image sets, and no experience."""
        folder = tmp_path / name
        folder.mkdir()
        (folder / "imagesets").symlink_to(prepared / "imagesets")
        return folder

    def here(name: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        recorder = Recorder()
        run(tiny(**settings), storage(name), recorder)
        return recorder.numbers()

    def fresh(name: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        command = [sys.executable, "-c", FRESH, json.dumps(settings), str(storage(name))]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        numbers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return numbers

    in_a_row = [here("first", first), here("other", other), here("again", first)]
    assert in_a_row == [fresh("fresh", first), fresh("fresh other", other), in_a_row[0]]
