from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emoreg.config import replace_paths
from emoreg.config.registry import PROBES
from emoreg.errors import ConfigError
from emoreg.results.records import EpochRecord, ProbeRecord
from emoreg.storage.experience import ExperienceStore
from emoreg.training.learners import EmotionLearner, Learner
from emoreg.training.model import EmotionalNet
from emoreg.training.probes import probe
from tests.helpers.trials import RANDOM, Recorder, Stop, equal, linear_encoder, run, tiny


def probed(recorder: Recorder) -> list[tuple[str, int, str, str]]:
    return [(e.stage, e.epoch, e.probe, e.name) for e in recorder.events if isinstance(e, ProbeRecord)]


def test_probes_change_no_number_of_the_trial(storage: Path) -> None:
    seen: list[tuple[bool, bool, Tensor]] = []

    @probe("greedy")
    def greedy(learner: Learner, images: Tensor, targets: Tensor) -> dict[str, float]:
        """Draws, computes gradients, leaves the network in training mode: all that could disturb the training."""
        seen.append((learner.network.training, torch.is_grad_enabled(), images.clone()))
        torch.rand(5)
        with torch.enable_grad():
            learner.loss(images, targets)[0].backward()
        norm = sum(float(p.grad.norm()) for p in learner.network.parameters() if p.grad is not None)
        learner.network.train()
        return {"gradient": norm, "noise": float(torch.rand(()))}

    config = replace_paths(tiny(), {**RANDOM, "pretraining.epochs": 3, "backbone": "test_resnet"})
    without, plain, expected = run(config, storage, folder=storage / "without")
    config = dataclasses.replace(config, probes=("greedy", "agreement"), probe_every=2)
    with_probes, recorder, network = run(
        config, storage, folder=storage / "with", store=ExperienceStore(str(storage / "another"))
    )
    assert equal(network, expected)
    assert [_numbers(row) for row in recorder.numbers()] == [_numbers(row) for row in plain.numbers()]
    assert (with_probes.val_accuracy, with_probes.val_loss) == (without.val_accuracy, without.val_loss)
    assert probed(recorder) == [
        ("pretraining", 2, "greedy", "gradient"),
        ("pretraining", 2, "greedy", "noise"),
        ("pretraining", 3, "greedy", "gradient"),  # the last
        ("pretraining", 3, "greedy", "noise"),
        ("regulation", 2, "greedy", "gradient"),
        ("regulation", 2, "greedy", "noise"),
        ("regulation", 2, "agreement", "agreement"),
    ]
    assert [modes for *modes, _ in seen] == [[False, False]] * 3
    assert torch.equal(seen[0][2], seen[1][2])  # a fixed batch
    assert with_probes.end.value == "completed"


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "identity"}


def test_a_resumed_trial_tells_what_its_probes_measured_before(storage: Path) -> None:
    config = dataclasses.replace(tiny(), probes=("agreement",))
    _, straight, _ = run(config, storage, folder=storage / "straight", store=ExperienceStore(str(storage / "another")))
    with pytest.raises(Stop):
        run(config, storage, Recorder(("regulation", 1)), checkpoint_seconds=0)
    _, again, _ = run(config, storage)
    assert probed(again) == probed(straight) == [("regulation", epoch, "agreement", "agreement") for epoch in (1, 2)]
    values = [[e.value for e in r.events if isinstance(e, ProbeRecord)] for r in (again, straight)]
    assert values[0] == values[1]
    kinds = [type(event) for event in again.events if isinstance(event, EpochRecord | ProbeRecord)]
    assert kinds == [EpochRecord, EpochRecord, ProbeRecord, EpochRecord, ProbeRecord]


def test_agreement_is_the_share_of_images_that_both_encoders_see_alike() -> None:
    answers = {"plain": torch.eye(4), "emotional": torch.eye(4)[[0, 1, 3, 3]]}

    class Known(EmotionLearner):
        def sources(self, images: Tensor) -> dict[str, Tensor]:
            return answers

    learner = Known(tiny(), EmotionalNet(linear_encoder(5, seed=1), 4, seed=2), regression=False)
    batch = torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    assert PROBES["agreement"](learner, *batch) == {"agreement": 0.75}
    del answers["plain"]
    assert PROBES["agreement"](learner, *batch) == {}


def test_a_probe_that_is_not_registered_is_refused(storage: Path) -> None:
    with pytest.raises(ConfigError, match=r"Register the probe 'agrement' .*nearest are agreement"):
        run(dataclasses.replace(tiny(pretraining__epochs=0, regulation__epochs=1), probes=("agrement",)), storage)
