from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from emoreg.config import TrialConfig, replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.data import Split
from emoreg.data.batches import Batches
from emoreg.results.outcome import OomState, Outcome
from emoreg.results.records import EpochRecord, TrialRecord
from emoreg.results.tables import Records
from emoreg.storage.checkpoint import CHECKPOINT, State
from emoreg.training.backbones import Encoder, create_encoder
from emoreg.training.learners import EmotionLearner, RegulationLearner, evaluate
from emoreg.training.model import EmotionalNet, Regulation, create_emotional_net
from emoreg.training.oom import MicroBatches
from tests.helpers.trials import (
    CPU,
    RANDOM,
    TINY,
    equal,
    identity_of,
    linear_encoder,
    load_state,
    noise_batches,
    noise_split,
    run,
    same,
    stage_of,
    train,
)
from tests.helpers.waiting import PATIENCE

SGD = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.05}  # Adam would make much of rounding
VIT = replace_paths(
    TINY,
    {**RANDOM, "backbone": "test_vit", "drop_path": 0.0, "regulation.epochs": 1}
    | {f"{stage}.{path}": value for stage in ("pretraining", "regulation") for path, value in SGD.items()},
)


@contextmanager
def room_for(images: int, *, when: str = "forward", training: bool = True, recomputed: bool = False) -> Iterator[list[int]]:
    """A memory that is too small for more images in an encoder, whose forward or backward pass runs out of it.

    Args:
        images: so many fit.
        when: "forward" or "backward".
        training: whether it is training that needs the memory, or evaluation.
        recomputed: whether everything fits as soon as the activations are not kept.

    Returns:
        The sizes of the batches that did not fit.
    """
    refused: list[int] = []

    def refuse(num_images: int) -> None:
        refused.append(num_images)
        raise torch.OutOfMemoryError(f"no room for {num_images} images")

    def look(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if not isinstance(module, Encoder) or module.training != training or len(args[0]) <= images:
            return
        if recomputed and module.model.grad_checkpointing:
            return
        if when == "forward":
            refuse(len(args[0]))
        output.register_hook(lambda gradient: refuse(len(gradient)))

    handle = register_module_forward_hook(look)
    try:
        yield refused
    finally:
        handle.remove()


def network_of(config: TrialConfig) -> Regulation:
    options: dict[str, Any] = {"image_size": 16, "drop_path": config.drop_path, "weights": None}
    plain, emotional = (create_encoder(config.backbone, seed=seed, **options) for seed in (1, 2))
    torch.manual_seed(0)
    head = nn.Linear(emotional.width, 4)
    return Regulation(config.regulation, plain=plain, emotional=emotional, emotion_head=head, num_classes=3, seed=0)


Learned = tuple[dict[str, Any], list[float], OomState, list[State]]


def learn(config: TrialConfig, latest: State | None = None) -> Learned:
    """Regulate: the weights, the losses, what was done about memory and the states."""
    learner = RegulationLearner(config, network_of(config))
    stage = stage_of("regulation", config, noise_batches(11, size=16), noise_batches(9, size=16, seed=1))
    fitted, states, recorder = train(stage, learner, latest=latest, every_step=True)
    return learner.network.state_dict(), recorder.losses("regulation"), fitted.oom, states


def without_history(states: list[State]) -> list[State]:
    return [{key: value for key, value in state.items() if key != "history"} for state in states]


def close(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether weights are the same within rounding."""
    return all(torch.allclose(value.double(), second[key].double(), rtol=1e-3, atol=1e-5) for key, value in first.items())


@pytest.mark.parametrize(
    ("form", "kind", "when"),
    [
        ("output", "fixed", "backward"),
        ("output", "random", "forward"),
        ("output", "dynamic", "forward"),
        ("conditioned", "learnable", "backward"),
        ("loss", "random", "forward"),
        ("loss", "fixed", "backward"),
    ],
)
def test_regulation_in_parts_is_regulation_within_rounding(
    form: str, kind: str, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace_paths(VIT, {"regulation.form": form, "regulation.kind": kind})
    expected, losses, whole, states = learn(config)
    assert whole == OomState()
    assert all(state["oom"] == asdict(whole) for state in states)
    with room_for(3, when=when) as refused:
        found, losses_in_parts, oom, states = learn(config)
    assert (oom, refused) == (OomState(micro_batch_size=2), [8, 4])  # once and for all
    assert all(state["oom"] == asdict(oom) for state in states)
    assert losses_in_parts == pytest.approx(losses, rel=1e-4)
    assert close(found, expected)
    assert not equal(found, network_of(config).state_dict())
    assert [record.getMessage() for record in caplog.records] == [
        "memory of cpu: 8 images are too many at once; continuing with 4",
        "memory of cpu: 4 images are too many at once; continuing with 2",
    ]
    with room_for(3) as refused:  # and a resumed trial knows it
        again, _, its_oom, later = learn(config, latest=states[0])
    assert (its_oom, refused) == (oom, [])
    assert equal(again, found)
    assert same(without_history(later), without_history(states[1:]))


@pytest.mark.parametrize("regression", [False, True])
def test_pretraining_in_parts_is_pretraining_within_rounding(regression: bool) -> None:
    split, config = noise_split(11, size=16), VIT
    if regression:
        config = replace_paths(VIT, {"pretraining.sampling": "natural"})
        split = Split(images=split.images, targets=np.stack([split.targets, -split.targets], axis=1).astype(np.float32) / 3)
    held_out = Batches(split, device=CPU)

    def teach() -> tuple[EmotionalNet, list[EpochRecord], list[State]]:
        outputs = 2 if regression else 3
        learner = EmotionLearner(config, create_emotional_net(config, outputs), regression=regression)
        stage = stage_of("pretraining", config, held_out, held_out, num_outputs=outputs, regression=regression)
        _, states, recorder = train(stage, learner)
        return learner.network, recorder.epochs("pretraining"), states

    expected, (row,), _ = teach()
    with room_for(3) as refused, room_for(10, training=False) as refused_to_evaluate:
        net, (row_in_parts,), (state,) = teach()
    assert refused == [8, 4]
    assert refused_to_evaluate == [11]
    assert state["oom"] == {"micro_batch_size": 2, "recomputed": False}
    assert row_in_parts.train_loss == pytest.approx(row.train_loss, rel=1e-4)
    assert row_in_parts.val_loss == pytest.approx(row.val_loss, rel=1e-4)
    assert row_in_parts.train_accuracy == row.train_accuracy
    assert close(net.state_dict(), expected.state_dict())


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_backbone_with_batchnorm_computes_twice_instead_and_is_the_same_to_the_bit(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace_paths(TINY, {**RANDOM, "drop_path": 0.3})
    expected, losses, _, _ = learn(config)
    with room_for(3, when=when, recomputed=True) as refused:
        found, losses_again, oom, states = learn(config)
    assert (oom, refused) == (OomState(recomputed=True), [8])
    assert all(state["oom"] == asdict(oom) for state in states)
    assert losses_again == losses
    assert equal(found, expected)  # running statistics and their counts too
    assert any(key.endswith("running_var") for key in found)
    assert [record.getMessage() for record in caplog.records] == [
        "memory of cpu: 8 images are too many at once, and BatchNorm needs them all; continuing with activations that are "
        "computed again in the backward pass rather than kept"
    ]
    with room_for(3, when=when, recomputed=True) as refused:  # and a resumed trial does so at once
        again, _, its_oom, later = learn(config, latest=states[0])
    assert (its_oom, refused) == (oom, [])
    assert equal(again, expected)
    assert same(without_history(later), without_history(states[1:]))


def test_a_frozen_batchnorm_does_not_hinder_parts() -> None:
    config = replace_paths(TINY, {"regulation.balance": 0.3, "regulation.freeze_emotional": True})
    network = network_of(config)
    network.plain, network.plain_head = linear_encoder(5, seed=1, image_size=16), nn.Linear(5, 3)
    network.train()
    found = MicroBatches(network, OomState(micro_batch_size=4))
    images, targets = torch.randn(10, 3, 16, 16), torch.arange(10) % 3

    def forward(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        response = network(images)
        return network.loss(response, targets), response.logits

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loss, logits = found.backward(forward, optimizer, images, targets)
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    whole, all_logits = MicroBatches(network).backward(forward, optimizer, images, targets)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(logits, all_logits)
    expected = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_what_nothing_helps_says_why_and_what_would() -> None:
    with (
        room_for(3),
        pytest.raises(
            torch.OutOfMemoryError,
            match=r"lower batch_size, choose a backbone without BatchNorm \(a ViT\), or a device with more memory: BatchNorm "
            r"needs whole batches, but 8 images do not fit in the memory of cpu \(no room for 8 images\)",
        ),
    ):
        learn(TINY)
    with (
        room_for(0) as refused,
        pytest.raises(
            torch.OutOfMemoryError,
            match=r"one image at a time must fit in the memory of cpu, but it does not \(no room for 1 images\)",
        ),
    ):
        learn(VIT)
    assert refused == [8, 4, 2, 1]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # cannot compute twice
    net = EmotionalNet(Encoder(model, 16), 3, seed=0)
    with room_for(3), pytest.raises(torch.OutOfMemoryError, match="lower batch_size"):
        train(stage_of("pretraining", TINY, noise_batches(11, size=16)), EmotionLearner(TINY, net, regression=False))


def test_another_error_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Regulation, "loss", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        learn(VIT)


def test_an_evaluation_in_parts_says_the_same() -> None:
    config = replace_paths(TINY, {"regulation.kind": "dynamic"})
    network, split = network_of(config), noise_batches(530, size=8)  # BatchNorm does not mind here
    nn.init.normal_(network.balance_of.weight)
    learner = RegulationLearner(config, network)
    whole = evaluate(learner, split)
    with room_for(100, training=False) as refused:
        parts = evaluate(learner, split)
    assert refused == [512, 256, 128]
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert torch.equal(parts.confusion, whole.confusion)
    torch.testing.assert_close(parts.balance, whole.balance)


def test_a_size_found_in_pretraining_is_kept_for_the_trial(storage: Path) -> None:
    longer = replace_paths(VIT, {"pretraining.epochs": 2})
    with room_for(5) as refused:
        result, recorder, _ = run(VIT, storage)
        assert refused == [8]  # once in pre-training, and known from then on
        assert result.oom.micro_batch_size == 4
        run(longer, storage)  # the snapshot knows it too
        assert refused == [8]
    assert len(recorder.epochs("regulation")) == 1


def test_a_trial_records_the_size_that_fitted(storage: Path) -> None:
    whole, _, _ = run(VIT, storage, folder=storage / "whole")
    assert whole.oom.micro_batch_size is None
    with room_for(5):
        result, _, _ = run(VIT, storage)
    assert result.oom.micro_batch_size == 4
    assert result.val_loss == pytest.approx(whole.val_loss, rel=1e-4)
    state = load_state(storage / identity_of(VIT) / CHECKPOINT)
    assert state is not None
    assert state["oom"] == {"micro_batch_size": 4, "recomputed": False}
    again, _, _ = run(VIT, storage)
    assert again.oom.micro_batch_size == 4  # read, not tried


def recorded(config: TrialConfig, outcome: Outcome, folder: Path) -> tuple[int | None, bool]:
    """What the record says, read back from its file, about a memory that was too small."""
    row = TrialRecord.of(resolve_trial(config), outcome, role="trial", number=None, params={}, device="CPU", started="")
    Records(folder).add_trial(row)
    read = Records(folder).trials[identity_of(config)]
    return read.micro_batch_size, read.recomputed


def test_the_record_says_that_activations_were_recomputed(storage: Path) -> None:
    config = replace_paths(TINY, RANDOM)
    whole, _, expected = run(config, storage / "whole")
    assert recorded(config, whole, storage) == (None, False)
    with room_for(3, recomputed=True) as refused:
        result, _, found = run(config, storage)
        assert refused == [8]  # in pre-training; regulation, which has two encoders, begins with what that found out
    assert recorded(config, result, storage) == (None, True)
    assert equal(found, expected)
    again, _, _ = run(config, storage)
    assert again.oom.recomputed  # read, not tried
    # An earlier attempt that was killed between the stages knows it from its snapshot.
    (storage / identity_of(config) / CHECKPOINT).unlink()
    with room_for(3, recomputed=True) as refused:
        resumed, _, found = run(config, storage)
    assert (resumed.oom.recomputed, refused) == (True, [])
    assert equal(found, expected)


def test_a_trial_that_loads_an_experience_says_nothing_of_the_memory_that_it_took(storage: Path) -> None:
    for trainer, number in ((TINY, 3), (VIT, 5)):
        with room_for(number, recomputed=trainer is TINY):
            first, _, _ = run(trainer, storage)
        assert first.oom.recomputed or first.oom.micro_batch_size == 4
        user = replace_paths(trainer, {"regulation.balance": 0.25, "regulation.kind": "fixed"})
        result, recorder, _ = run(user, storage)
        assert not recorder.epochs("pretraining")
        assert recorded(user, result, storage) == (None, False)


@pytest.mark.parametrize(
    "paths", [{"regulation.freeze_emotional": True}, {"regulation.freeze_emotional": True, "regulation.balance": 1.0}]
)
def test_what_pretraining_found_out_serves_a_frozen_encoder_too(paths: dict[str, Any], storage: Path) -> None:
    config = replace_paths(TINY, paths)
    _, _, expected = run(config, storage / "whole")
    with room_for(3, recomputed=True) as refused:
        result, _, found = run(config, storage)
    assert (result.oom.recomputed, refused) == (True, [8])
    assert equal(found, expected)


REAL = """
import resource, sys
import torch
from emoreg.training.backbones import create_encoder
from emoreg.training.oom import MicroBatches
from emoreg.training.model import EmotionalNet
from tests.training.test_oom import gradient

torch.set_num_threads(1)
torch.backends.mkldnn.enabled = False  # whose own allocations fail without saying why
gradient(4)  # whatever torch sets up at its first step
used = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]), resource.RLIM_INFINITY))
size, loss, norm = gradient(256)
print(size, loss, norm)
"""


def gradient(num_images: int) -> tuple[int | None, float, float]:
    """Of a small ViT for random images: the size that fitted, the loss and the gradient's norm."""
    net = EmotionalNet(create_encoder("test_vit", image_size=32, drop_path=0.0, weights=None, seed=0), 3, seed=0)
    micro_batches = MicroBatches(net.train())
    images = torch.randn(num_images, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def forward(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        scores = net(images).logits
        return nn.functional.cross_entropy(scores, targets), scores

    targets = torch.arange(num_images) % 3
    loss, _ = micro_batches.backward(forward, torch.optim.SGD(net.parameters()), images, targets)
    return (
        micro_batches.state.micro_batch_size,
        float(loss),
        float(nn.utils.get_total_norm([p.grad for p in net.parameters()])),
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the size of a process as Linux tells it")
@pytest.mark.slow
def test_a_process_that_really_runs_out_of_memory_gets_the_same_gradient() -> None:
    _, loss, norm = gradient(256)
    command = [sys.executable, "-c", REAL, str(150 << 20)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    size, its_loss, its_norm = done.stdout.split()
    assert 16 <= int(size) < 256
    assert float(its_loss) == pytest.approx(loss, rel=1e-5)
    assert float(its_norm) == pytest.approx(norm, rel=1e-4)
    assert "256 images are too many at once; continuing with 128" in done.stderr
