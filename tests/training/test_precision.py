from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emoreg.config.resolved import resolve_trial
from emoreg.config.trial import Precision
from emoreg.training import precision
from emoreg.training.backbones import create_encoder
from emoreg.training.experience import experience_key
from emoreg.training.precision import auto_precision, settle
from tests.helpers.trials import CPU, Recorder, Stop, run, tiny

AUTO = tiny(deterministic=False)
Measured = Callable[[float], list[str]]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Sets by how much bf16 is faster, on a machine that remembers nothing; gives the backbones that are measured."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: True)
    asked: list[str] = []

    def gain(ratio: float) -> list[str]:
        monkeypatch.setattr(
            precision, "_measure", lambda config: asked.append(config.backbone) or {"float32": ratio, "bf16": 1.0}
        )
        return asked

    return gain


@pytest.mark.parametrize(("ratio", "expected"), [(0.9, "float32"), (1.05, "float32"), (1.5, "bf16")])
def test_a_cpu_takes_what_is_measured_to_be_faster(measured: Measured, ratio: float, expected: Precision) -> None:
    measured(ratio)
    assert auto_precision(AUTO, CPU) == expected


def test_a_machine_measures_once_for_each_backbone_and_size(measured: Measured, tmp_path: Path) -> None:
    asked = measured(2.0)
    assert auto_precision(AUTO, CPU) == "bf16"
    measured(0.5)
    assert auto_precision(tiny(deterministic=False, seed=3, regulation__balance=0.1), CPU) == "bf16"
    assert len(asked) == 1
    for other in ({"backbone": "test_vit"}, {"image_size": 32}, {"regulation__batch_size": 9}):
        assert auto_precision(tiny(deterministic=False, **other), CPU) == "float32"
    assert len(asked) == 4
    for path in tmp_path.rglob("*.json"):
        path.write_bytes(path.read_bytes()[:-20])  # a damaged memory is none
    assert auto_precision(AUTO, CPU) == "float32"


def test_a_processor_without_bf16_and_a_deterministic_trial_are_not_measured(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured(2.0)
    assert auto_precision(tiny(), CPU) == "float32"
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: False)
    assert auto_precision(AUTO, CPU) == "float32"
    assert not asked


def test_steps_are_measured_in_both_precisions_and_draw_from_no_stream() -> None:
    state = torch.get_rng_state()
    seconds = precision._measure(tiny(deterministic=False, image_size=8, drop_path=0.2, regulation__batch_size=4))
    assert seconds.keys() == {"float32", "bf16"}
    assert all(value > 0 for value in seconds.values())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_study_decides_for_its_trials_and_a_trial_that_began_goes_on_as_it_began(measured: Measured) -> None:
    asked = measured(2.0)
    trial = resolve_trial(AUTO)
    settled = settle(trial, CPU, {"test_resnet": "float32"})
    assert settled.config.precision == "float32"
    assert settled.identity == trial.identity, "what `auto` comes to is no setting"
    assert settle(trial, CPU, {"test_resnet": "float32"}, began_in="bf16").config.precision == "bf16"
    assert settle(resolve_trial(tiny()), CPU, {"test_resnet": "bf16"}).config.precision == "float32"
    explicit = resolve_trial(tiny(deterministic=False, precision="float32"))
    assert settle(explicit, CPU, {"test_resnet": "bf16"}) == explicit
    assert not asked
    assert settle(trial, CPU, {"test_vit": "float32"}).config.precision == "bf16"
    keys = {experience_key(found.config, AUTO.stimuli, "f", CPU) for found in (settled, settle(trial, CPU, {}))}
    assert len(keys) == 2, "precisions share no experience"


def test_a_trial_that_is_taken_up_elsewhere_keeps_its_precision_and_records_it(storage: Path) -> None:
    stopped = Recorder(("regulation", 1))
    with pytest.raises(Stop):
        run(AUTO, storage, stopped, precisions={"test_resnet": "bf16"}, checkpoint_seconds=0)
    outcome, recorder, _ = run(AUTO, storage, precisions={"test_resnet": "float32"})
    assert outcome.precision == "bf16"
    assert [row.precision for row in recorder.epochs("regulation")] == ["bf16", "bf16"]


def test_attention_is_unfused_in_bf16_on_a_cpu_and_stays_what_it_is() -> None:
    encoder = create_encoder("test_vit", image_size=16, drop_path=0.0, weights=None, seed=0)
    attention = encoder.model.blocks[0].attn  # type: ignore[index,union-attr]
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = encoder(images)
    assert attention.fused_attn
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = encoder(images)
    assert not attention.fused_attn
    torch.testing.assert_close(mixed.float(), plain, rtol=0.1, atol=0.05)
    assert torch.equal(encoder(images), plain)
    assert attention.fused_attn
