"""A trained network outside of its study."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import emoreg
from emoreg.config import TrialConfig, replace_paths
from emoreg.data import load, parts
from emoreg.data.batches import Batches
from emoreg.errors import ConfigError, StorageError
from emoreg.training import trial as trial_module
from emoreg.training.learners import Evaluation
from emoreg.training.network import check_onnx
from emoreg.training.optim import reproducible
from tests.helpers.networks import copy_to, trained_study, write_untrained
from tests.helpers.trials import CPU, TINY, tiny
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("torch_threads")

CONFIGS: dict[str, dict[str, Any]] = {
    "balanced": {"regulation__kind": "dynamic", "drop_path": 0.1},
    "conditioned": {"regulation__form": "conditioned"},
    "of probabilities": {"regulation__mix_space": "probabilities", "regulation__kind": "random"},
    "plain": {"regulation__balance": 0.0},
    "wide": {"control": "wide", "backbone": "test_vit"},
    "in bf16": {"precision": "bf16", "deterministic": False},
}


def pixels(config: TrialConfig, storage: Path) -> Tensor:
    """The validation images of a trial's task as a user has them: B 3 S S in [0, 1]."""
    _, validation = parts(load(config.task, image_size=config.image_size, storage=storage), config.task)
    return torch.as_tensor(validation.images.copy()).permute(0, 3, 1, 2).contiguous() / 255


@pytest.mark.parametrize("name", CONFIGS)
def test_it_gives_the_scores_of_the_trial_s_own_evaluation_to_the_bit(
    name: str, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(regulation__epochs=1, **CONFIGS[name])
    evaluations: list[Evaluation] = []
    real = trial_module.fit

    def remember(*args: Any, **kwargs: Any) -> Any:
        fitted = real(*args, **kwargs)
        evaluations.append(fitted.evaluation)
        return fitted

    monkeypatch.setattr(trial_module, "fit", remember)
    folder, record = trained_study(storage, config)
    study = emoreg.load_study(folder)
    assert study.export(storage / "exported") == record
    network = emoreg.load_network(storage / "exported")
    with torch.no_grad(), reproducible(True):
        scores = network(pixels(config, storage))
    assert torch.equal(scores, evaluations[-1].scores)
    assert network.class_names == load(config.task, image_size=16, storage=storage).class_names


def test_a_wide_network_has_four_times_the_weights(storage: Path) -> None:
    records = {}
    for control in ("plain", "wide"):
        folder, records[control] = trained_study(storage, tiny(regulation__epochs=1, control=control), name=control)
        emoreg.load_study(folder).export(storage / f"exported {control}")
    wide = emoreg.load_network(storage / "exported wide")
    assert wide.config.trial.width == 2
    assert sum(weight.numel() for weight in wide.parameters()) == records["wide"].num_parameters
    counts = [records[control].num_parameters for control in ("plain", "wide")]
    assert counts[1] / counts[0] == pytest.approx(4, rel=0.03)


@pytest.mark.slow
def test_it_needs_nothing_but_its_folder(storage: Path, tmp_path: Path) -> None:
    folder, record = trained_study(storage, replace_paths(TINY, {"regulation.epochs": 1}))
    emoreg.load_study(folder).export(tmp_path / "exported")
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"weights.safetensors", "config.json", "README.md"}
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert (config["identity"], config["image_size"], config["mean"], config["std"]) == (record.identity, 16, 0.5, 0.25)
    assert str(storage) not in json.dumps(config), "no place of the machine that trained it"
    script = (
        "import emoreg, torch\n"
        f"network = emoreg.load_network({str(tmp_path / 'exported')!r})\n"
        "print(network(torch.zeros(4, 3, 16, 16)).argmax(dim=1).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.stdout.strip() == "torch.Size([4])", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["balanced", "conditioned", "plain", "in bf16"])
def test_in_onnx_it_gives_the_same_scores(name: str, storage: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install -e ".[onnx]" and onnxruntime')
    config = tiny(regulation__epochs=1, **CONFIGS[name])
    folder, _ = trained_study(storage, config)
    emoreg.load_study(folder).export(tmp_path, onnx=True)
    network = emoreg.load_network(tmp_path)
    network.config = dataclasses.replace(network.config, trial=dataclasses.replace(network.config.trial, precision="float32"))
    images = pixels(config, storage)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    (scores,) = session.run(["scores"], {"images": images.numpy()})
    with torch.no_grad():
        assert torch.allclose(network(images), torch.from_numpy(scores), atol=1e-4, rtol=1e-4)
    emoreg.load_study(folder).export(tmp_path)
    assert not (tmp_path / "network.onnx").exists(), "of a network that is replaced"


def test_onnx_without_its_packages_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'Run pip install -e "\.\[onnx\]", or export without ONNX'):
        check_onnx()


def test_a_study_in_an_object_store_is_exported_too(bucket: str, storage: Path) -> None:
    folder, record = trained_study(storage, replace_paths(TINY, {"regulation.epochs": 1}))
    study = emoreg.load_study(copy_to(bucket, folder))
    study.export(storage / "exported", trial=record.identity[:6])
    assert emoreg.load_network(storage / "exported").config.identity == record.identity


def test_a_network_that_was_not_kept_is_refused_by_its_trial(storage: Path) -> None:
    folder, record = trained_study(storage, replace_paths(TINY, {"regulation.epochs": 1}))
    (folder / "trials" / record.identity / "trial.ckpt").unlink()
    study = emoreg.load_study(folder)
    with pytest.raises(ConfigError, match=rf"keep_networks='all'.*that of trial {record.identity} .* was not"):
        study.export(storage / "exported")
    assert not (storage / "exported").exists()


def test_a_folder_of_something_else_is_left_alone(storage: Path, tmp_path: Path) -> None:
    folder, _ = trained_study(storage, replace_paths(TINY, {"regulation.epochs": 1}))
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"Give an empty folder, .* holds README.md"):
        emoreg.load_study(folder).export(other)
    assert (other / "README.md").read_text() == "mine"
    for _ in range(2):  # an export takes the place of an earlier one
        emoreg.load_study(folder).export(tmp_path / "mine")


def test_images_of_another_size_or_range_are_refused(tmp_path: Path) -> None:
    write_untrained(tmp_path)
    network = emoreg.load_network(tmp_path)
    with pytest.raises(ConfigError, match=r"Resize .* takes batches of 3 x 16 x 16, but these are 2 x 3 x 20 x 20"):
        network(torch.rand(2, 3, 20, 20))
    with pytest.raises(ConfigError, match=r"Give floats in \[0, 1\].* torch.uint8 from 7 to 7"):
        network(torch.full((2, 3, 16, 16), 7, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"not normalised.* from -2 to -2"):
        network(torch.full((2, 3, 16, 16), -2.0))


def test_damaged_weights_and_folders_without_a_network_are_refused(tmp_path: Path) -> None:
    write_untrained(tmp_path / "exported")
    weights = tmp_path / "exported" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StorageError, match=r"Export the network again: weights.safetensors"):
        emoreg.load_network(tmp_path / "exported")
    with pytest.raises(ConfigError, match=r"it must hold config.json and weights.safetensors"):
        emoreg.load_network(tmp_path)
    (tmp_path / "exported" / "config.json").write_text("{")
    with pytest.raises(StorageError, match=r"config.json of .* cannot be read"):
        emoreg.load_network(tmp_path / "exported")


def test_a_registered_backbone_must_be_registered_with_the_code_that_was_trained(tmp_path: Path) -> None:
    @emoreg.backbone("mean_pixel")
    def mean_pixel() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    config = dataclasses.replace(TINY, backbone="mean_pixel")
    from emoreg.config.registry import BACKBONES

    write_untrained(tmp_path, config, backbone_code=BACKBONES["mean_pixel"].fingerprint)
    assert emoreg.load_network(tmp_path)(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    write_untrained(tmp_path / "other", config, backbone_code="of other code")
    with pytest.raises(ConfigError, match="must be the same code, but it has other code here"):
        emoreg.load_network(tmp_path / "other")
    BACKBONES._entries.pop("mean_pixel")
    with pytest.raises(ConfigError, match=r"Import the file that registers backbone 'mean_pixel'.* is not registered here"):
        emoreg.load_network(tmp_path)


def test_it_can_be_compiled(tmp_path: Path) -> None:
    write_untrained(tmp_path)
    network = emoreg.load_network(tmp_path)
    exported = torch.export.export(network, (torch.rand(2, 3, 16, 16),))
    images = torch.rand(2, 3, 16, 16)
    assert torch.allclose(exported.module()(images), network(images), atol=1e-5)


def test_batches_of_a_split_are_what_it_was_evaluated_on(storage: Path) -> None:
    """What a user prepares and what a trial evaluates are one: only the normalisation stands between them."""
    _, validation = parts(load(TINY.task, image_size=16, storage=storage), TINY.task)
    ((images, _),) = Batches(validation, device=CPU).evaluation()
    assert torch.equal((pixels(TINY, storage) - 0.5) / 0.25, images)
