"""Weights as trainers leave them."""

from __future__ import annotations

import argparse
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from emoreg.errors import ConfigError
from emoreg.training.backbones import check_backbone, create_encoder
from emoreg.training.weights import read_weights

State = dict[str, torch.Tensor]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


STATE, OTHER = (network(seed).state_dict() for seed in (1, 2))
HEAD = {"head.weight": torch.ones(2, 4)}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(STATE, id="plain"),
        pytest.param(nn.DataParallel(network(1)).state_dict(), id="DDP"),
        pytest.param(prefixed("_orig_mod.module.", STATE), id="compiled DDP"),
        pytest.param(
            {
                "epoch": 3,
                "state_dict": prefixed("model._orig_mod.", STATE) | HEAD,
                "hyper_parameters": {"lr": 0.1, "data": PosixPath("data"), "args": argparse.Namespace(lr=0.1)},
            },
            id="Lightning",
        ),
        pytest.param({"state_dict": prefixed("net.encoder.", STATE) | prefixed("net.head.", HEAD)}, id="deeper"),
        pytest.param({"model": OTHER, "model_ema": prefixed("module.", STATE), "optimizer": {}}, id="an average beside it"),
        pytest.param({"state_dict": prefixed("model.", OTHER) | prefixed("ema_model.", STATE)}, id="an average within it"),
        pytest.param(AveragedModel(network(1)).state_dict(), id="torch's average"),
        pytest.param(
            {"0._orig_mod.weight": STATE["0.weight"], **{k: v for k, v in STATE.items() if k != "0.weight"}}, id="part"
        ),
    ],
)
def test_the_state_of_the_model_is_taken_out_of_what_trainers_put_around_it(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    found = read_weights(tmp_path / "weights.pth", STATE)
    assert all(torch.equal(found[name], value) for name, value in STATE.items())
    network(3).load_state_dict({name: found[name] for name in STATE})


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(prefixed("module.", STATE), tmp_path / "weights.safetensors")
    assert read_weights(tmp_path / "weights.safetensors", STATE).keys() == STATE.keys()


def test_several_that_fit_alike_are_refused(tmp_path: Path) -> None:
    torch.save(prefixed("student.", STATE) | prefixed("teacher.", OTHER), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"several that fit, \['student.', 'teacher.'\]: save the one that is meant"):
        read_weights(tmp_path / "weights.pth", STATE)


def test_a_checkpoint_of_lightning_starts_an_encoder_of_timm(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(5)
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    torch.save({"state_dict": prefixed("model.", state)}, tmp_path / "last.ckpt")
    encoder = create_encoder("test_resnet", image_size=32, drop_path=0.0, weights=str(tmp_path / "last.ckpt"), seed=0)
    found = encoder.model.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in found.keys() - {"conv1.weight"} if "stem" not in name)


def test_a_pointer_of_git_lfs_is_named_as_such_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ConfigError, match=r"Fetch the weights themselves \(run `git lfs pull`.*weights.pth' is a pointer"):
        check_backbone("test_resnet", image_size=32, weights=str(tmp_path / "weights.pth"))
