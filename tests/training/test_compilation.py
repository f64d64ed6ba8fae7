"""What is compiled is compiled for real in the slow tests: even for a few layers that takes a core half a minute."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import emoreg
from emoreg.config import TrialConfig, replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.config.trial import Compile
from emoreg.errors import ConfigError
from emoreg.training import compile_choice
from emoreg.training.backbones import Encoder, create_encoder, recompute_activations
from emoreg.training.compilation import compile_steps, missing_compiler, settle_compile
from emoreg.training.compile_choice import CompiledStep, auto_compile, decide
from emoreg.training.experience import experience_key
from tests.helpers.trials import CPU, Recorder, Stop, run, tiny

EAGER = tiny(deterministic=False, precision="float32", backbone="few_layers", compile="off")
COMPILED = dataclasses.replace(EAGER, compile="on")
AUTO = dataclasses.replace(EAGER, compile="auto")
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}
"""In float32, after a few epochs: what differs is the order in which numbers are added up."""

needs_compiler = pytest.mark.skipif(missing_compiler(CPU) is not None, reason="no compiler")


class FewLayers(nn.Module):
    """A network that counts how often each size of batch goes through it as it is."""

    eager_sizes: list[int]

    def __init__(self) -> None:
        super().__init__()
        # Without a bias, which BatchNorm takes out again: its gradient would be rounding alone, and AdamW makes steps of it.
        layers = [
            nn.Conv2d(3, 8, 3, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(1),
        ]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.eager_sizes = []

    def forward(self, images: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.eager_sizes.append(len(images))
        features: Tensor = self.layers(images)
        return features

    def set_grad_checkpointing(self, enabled: bool) -> None:
        pass


@pytest.fixture(autouse=True)
def few_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone of the tests, on a machine that remembers nothing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    emoreg.backbone("few_layers")(FewLayers)


@needs_compiler
@pytest.mark.slow
def test_a_compiled_trial_gives_what_it_gives_uncompiled_within_rounding(storage: Path) -> None:
    eager, _, weights = run(EAGER, storage, folder=storage / "a")
    compiled, recorder, compiled_weights = run(COMPILED, storage, folder=storage / "b")
    assert (eager.compiled, compiled.compiled) == (False, True)
    assert [row.compiled for row in recorder.epochs("regulation")] == [True, True]
    assert compiled_weights.keys() == weights.keys(), "names of weights are those of the network as it is"
    for name, weight in weights.items():
        torch.testing.assert_close(compiled_weights[name], weight, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
    assert compiled.val_loss == pytest.approx(eager.val_loss, rel=1e-3)


@needs_compiler
@pytest.mark.slow
def test_whole_batches_in_training_are_compiled_once_for_all_networks_of_an_architecture() -> None:
    from torch._dynamo.utils import counters

    def fresh(seed: int) -> tuple[Encoder, list[int]]:
        encoder = create_encoder("few_layers", image_size=16, drop_path=0.0, weights=None, seed=seed)
        compile_steps(encoder, replace_paths(COMPILED, {"pretraining.batch_size": 8}))
        eager_sizes: list[int] = encoder.model.eager_sizes  # type: ignore[assignment]
        eager_sizes.clear()
        return encoder, eager_sizes

    counters.clear()
    for seed in range(3):
        encoder, eager_sizes = fresh(seed)
        images = torch.randn(8, 3, 16, 16)
        encoder(images).sum().backward()
        gradients = [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]
        assert len(gradients) == len([*encoder.parameters()])
        assert not eager_sizes
    assert counters["stats"]["unique_graphs"] <= 1, "another test of this process may have compiled it"
    encoder(images[:5])
    encoder.eval()(images)
    assert eager_sizes == [5, 8], "the last batch of an epoch, and an evaluation"
    encoder.train()
    recompute_activations(encoder)
    encoder(images)
    assert eager_sizes == [5, 8, 8]


@needs_compiler
@pytest.mark.slow
def test_dropout_draws_from_the_streams_that_a_checkpoint_keeps(storage: Path) -> None:
    whole, _, weights = run(COMPILED, storage, folder=storage / "whole")
    with pytest.raises(Stop):
        run(COMPILED, storage, Recorder(("regulation", 1)), folder=storage / "parts", checkpoint_seconds=0)
    parts, _, continued = run(COMPILED, storage, folder=storage / "parts")
    assert whole.val_loss == pytest.approx(parts.val_loss, rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(continued[name], weight, rtol=1e-5, atol=1e-6)


def settled(config: TrialConfig, decided: dict[str, bool], began_in: Compile | None = None) -> Compile:
    trial = resolve_trial(config)
    found = settle_compile(trial, CPU, decided, began_in=began_in)
    assert found.identity == trial.identity, "what `auto` comes to is no setting"
    return found.config.compile


@needs_compiler
def test_a_study_decides_for_its_trials_and_a_trial_that_began_goes_on_as_it_began() -> None:
    assert settled(AUTO, {}) == settled(AUTO, {"few_layers": False}) == settled(AUTO, {"test_vit": True}) == "off"
    assert settled(AUTO, {"few_layers": True}) == settled(AUTO, {}, began_in="on") == "on"
    assert settled(AUTO, {"few_layers": True}, began_in="off") == "off"
    assert settled(EAGER, {"few_layers": True}) == "off"
    assert settled(COMPILED, {}) == "on"
    assert settled(tiny(backbone="few_layers"), {"few_layers": True}) == "off", "a deterministic trial"
    keys = {experience_key(config, AUTO.stimuli, "f", CPU) for config in (AUTO, EAGER, COMPILED)}
    assert len(keys) == 2, "what is compiled shares no experience with what is not"


def test_without_a_compiler_on_is_refused_and_auto_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ConfigError, match=r"Install a C\+\+ compiler .*'on' needs one, but on .* there is no 'no-such-compiler'"
    ):
        settled(COMPILED, {})
    assert settled(AUTO, {"few_layers": True}) == "off"
    found = auto_compile(AUTO, 1e9, 1, lambda message: None)
    assert not found.compiled
    assert found.reason == "no compiler: there is no 'no-such-compiler'"
    assert settled(EAGER, {}) == "off"


@pytest.mark.parametrize(
    ("compiled", "num_steps", "reason"),
    [
        (0.095, 1e6, "not 1.1 times as fast: a step takes 0.1 s, compiled 0.095 s, and compiling 40 s"),
        (0.05, 500, "500 steps save 25 s: "),
        (0.05, 1000, None),
    ],
)
def test_compiling_must_be_repaid(compiled: float, num_steps: float, reason: str | None) -> None:
    found = decide(CompiledStep(eager=0.1, compiled=compiled, compiling=40.0), num_steps)
    assert found.compiled == (reason is None)
    assert found.reason.startswith(reason or "1,000 steps save 50 s: ")


@needs_compiler
def test_a_machine_compiles_to_find_out_only_where_that_could_be_worth_it_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrialConfig] = []
    told: list[str] = []

    def measure(config: TrialConfig) -> CompiledStep:
        asked.append(config)
        return CompiledStep(eager=0.2, compiled=0.1, compiling=40.0)

    batches_of_32 = {"pretraining.batch_size": 32, "regulation.batch_size": 32}
    config = replace_paths(AUTO, batches_of_32)
    monkeypatch.setattr(compile_choice, "measure", measure)
    monkeypatch.setattr(compile_choice, "_seconds_per_image", lambda config: 0.01)
    assert "too short" in auto_compile(config, 1000, 1, told.append).reason
    assert auto_compile(config, 10_000, 1, told.append).reason == "its steps take 100 s, of which compiling could not save 60 s"
    assert not asked
    assert auto_compile(config, 40_000, 1, told.append).compiled
    assert not auto_compile(config, 40_000, 8, told.append).compiled, "by so many at once, each has few steps"
    assert auto_compile(dataclasses.replace(config, seed=3), 30_000, 1, told.append).compiled
    assert told == ["compiling few_layers to see whether it pays"]
    auto_compile(dataclasses.replace(config, precision="bf16"), 40_000, 1, told.append)
    assert len(asked) == 2


@needs_compiler
def test_what_cannot_be_compiled_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: TrialConfig) -> CompiledStep:
        raise RuntimeError("the compiler gave up")

    monkeypatch.setattr(compile_choice, "measure", broken)
    monkeypatch.setattr(compile_choice, "_seconds_per_image", lambda config: 1.0)
    assert auto_compile(AUTO, 1e6, 1, lambda message: None).reason == "it cannot be compiled: RuntimeError"


@needs_compiler
@pytest.mark.slow
def test_a_step_is_measured_as_it_is_and_compiled() -> None:
    state = torch.get_rng_state()
    step = compile_choice.measure(AUTO)
    assert min(step.eager, step.compiled) > 0
    assert compile_choice._seconds_per_image(AUTO) > 0
    assert torch.equal(torch.get_rng_state(), state)
