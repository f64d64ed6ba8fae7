from __future__ import annotations

import os
import pickle
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emoreg.config import OptimizerConfig, TrialConfig, replace_paths
from emoreg.config.code import source_fingerprint
from emoreg.config.registry import BACKBONES
from emoreg.config.resolved import resolve_trial
from emoreg.config.sharing import shared_runs
from emoreg.errors import ConfigError
from emoreg.results.outcome import OomState
from emoreg.training.backbones import (
    Backbone,
    Encoder,
    backbone,
    check_backbone,
    code_fingerprint,
    create_encoder,
    recompute_statistics,
)
from emoreg.training.experience import experience_key
from emoreg.training.model import EmotionalNet, create_emotional_net
from emoreg.training.optim import build_optimizer
from tests.helpers.trials import CPU, TINY, WRITTEN_DOWN, equal, run, tiny
from tests.training.test_oom import room_for


def create(
    name: str, image_size: int = 32, *, weights: str | None = None, seed: int = 0, drop_path: float = 0.0, width: int = 1
) -> Encoder:
    return create_encoder(name, image_size=image_size, drop_path=drop_path, weights=weights, seed=seed, width=width)


def images(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "width", "millions"),
    [("resnet18", 512, 11.17), ("resnet34", 512, 21.28), ("resnet50", 2048, 23.50), ("seresnet18", 512, 11.26)],
)
def test_resnets_see_small_images_whole(name: str, width: int, millions: float) -> None:
    encoder = create(name)
    assert encoder.width == width
    stem: Any = encoder.model.conv1
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(encoder.model.maxpool, nn.Identity)
    # Published sizes of the CIFAR variants without their classifier.
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    sides: list[int] = []
    encoder.model.layer4.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))  # type: ignore[union-attr]
    assert encoder.eval()(images()).shape == (2, width)
    assert sides == [4]  # 32 px over three halvings


def test_the_stem_of_a_deep_resnet_loses_its_stride_alone() -> None:
    encoder = create("test_resnet")
    stem: Any = encoder.model.conv1
    assert [layer.stride for layer in stem if isinstance(layer, nn.Conv2d)] == [(1, 1)] * 3
    assert create("resnet18d").eval()(images()).shape == (2, 512)


@pytest.mark.parametrize(
    ("size", "stem", "is_own"), [(88, "auto", False), (96, "auto", True), (32, "own", True), (96, "small", False)]
)
def test_a_resnet_keeps_its_own_stem_from_96_pixels_on_unless_told(size: int, stem: str, is_own: bool) -> None:
    config = TrialConfig(backbone="seresnet18", image_size=size, stem=stem)  # type: ignore[arg-type]
    model: Any = create_emotional_net(config, 7).encoder.model
    assert model.conv1.kernel_size == ((7, 7) if is_own else (3, 3))
    assert model.conv1.stride == ((2, 2) if is_own else (1, 1))
    assert isinstance(model.maxpool, nn.MaxPool2d) == (is_own or size > 64)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(11.27 if is_own else 11.26, abs=0.005)


def test_a_resnet_of_full_size_starts_with_the_stem_of_its_weights(tmp_path: Path) -> None:
    path, state = saved(tmp_path / "weights.pth", "resnet18", num_classes=7)
    model = create_encoder("resnet18", image_size=96, drop_path=0.0, weights=str(path), seed=0, small_stem=False).model
    assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize(("size", "pooled"), [(64, False), (72, True)])
def test_the_max_pool_goes_up_to_64_pixels(size: int, pooled: bool) -> None:
    assert isinstance(create("test_resnet", size).model.maxpool, nn.MaxPool2d) == pooled


@pytest.mark.parametrize(
    ("name", "width", "size"),
    [("vit_tiny", 192, 32), ("vit_small", 384, 32), ("test_vit", 64, 64), ("deit_tiny_patch16_224", 192, 32)],
)
def test_vits_have_eight_by_eight_tokens(name: str, width: int, size: int) -> None:
    encoder = create(name, size)
    model: Any = encoder.model
    assert model.patch_embed.patch_size == (size // 8,) * 2
    assert model.patch_embed.num_patches == 64
    assert model.pos_embed.shape == (1, 65, width)
    assert encoder.eval()(images(size)).shape == (2, width)
    assert encoder.width == width


@pytest.mark.parametrize(
    "name", ["test_convnext", "test_efficientnet", "mixer_s32_224", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"]
)
def test_other_families_are_taken_as_they_are(name: str) -> None:
    encoder = create(name)
    assert encoder.eval()(images()).shape == (2, encoder.width)


def test_a_new_encoder_is_in_training_mode_without_gradients_or_statistics() -> None:
    encoder = create("test_resnet")
    assert all(module.training for module in encoder.modules())
    assert all(p.requires_grad and p.grad is None for p in encoder.parameters())
    assert all(int(v) == 0 for key, v in encoder.state_dict().items() if key.endswith("num_batches_tracked"))


@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_the_seed_decides_the_weights_and_the_global_stream_is_untouched(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = create(name, seed=3).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert equal(first, create(name, seed=3).state_dict())
    other = create(name, seed=4).state_dict()
    assert all(not torch.equal(v, other[key]) for key, v in first.items() if v.dim() == 4)


def test_drop_path_drops_while_training_alone() -> None:
    encoder = create("test_vit", drop_path=0.5)
    assert not torch.equal(encoder(images()), encoder(images()))
    encoder.eval()
    assert torch.equal(encoder(images()), encoder(images()))
    with pytest.raises(ConfigError, match=r"what backbone 'vgg11' does not take, .*drop_path_rate"):
        create("vgg11", drop_path=0.5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "resnet18", "deit_tiny_patch16_224"])
@pytest.mark.parametrize("drop_path", [0.0, 0.1])
def test_every_layer_of_a_wide_encoder_has_twice_the_width(name: str, drop_path: float) -> None:
    encoder, wide = (create(name, 16, drop_path=drop_path, width=width) for width in (1, 2))
    assert wide.width == 2 * encoder.width
    usual, double = (dict(found.named_parameters()) for found in (encoder, wide))
    assert usual.keys() == double.keys()
    for key, weight in usual.items():
        sides = [*zip(weight.shape, double[key].shape, strict=True)]
        outputs = sides[-1] if key.endswith(("_token", "pos_embed")) else sides[0]
        assert outputs[1] == 2 * outputs[0], key
        is_first = key in ("model.conv1.weight", "model.conv1.0.weight", "model.patch_embed.proj.weight")  # of three colours
        assert is_first or weight.dim() < 2 or key.endswith(("_token", "pos_embed")) or sides[1][1] == 2 * sides[1][0], key
    num_weights = [sum(weight.numel() for weight in found.values()) for found in (usual, double)]
    assert num_weights[1] / num_weights[0] == pytest.approx(4, rel=0.03)
    assert wide(images(16)).shape == (2, wide.width)


def test_a_vit_tiny_of_twice_the_width_is_a_vit_small() -> None:
    def shapes(encoder: Encoder) -> dict[str, torch.Size]:
        return {key: value.shape for key, value in encoder.state_dict().items()}

    wide, small_vit = create("vit_tiny", width=2), create("vit_small")
    assert shapes(wide) == shapes(small_vit)
    heads = [layer.num_heads for encoder in (wide, small_vit) for layer in encoder.modules() if hasattr(layer, "num_heads")]
    assert {*heads} == {6}


@pytest.mark.parametrize("is_small", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "resnet18d"])
def test_the_stem_of_a_wide_resnet_is_that_of_the_usual_one(name: str, is_small: bool) -> None:
    def stem(width: int) -> list[nn.Conv2d]:
        options: dict[str, Any] = {"image_size": 32, "drop_path": 0.0, "weights": None, "seed": 0}
        model: Any = create_encoder(name, small_stem=is_small, width=width, **options).model
        assert isinstance(model.maxpool, nn.Identity if is_small else nn.MaxPool2d)
        assert model.layer1[0].downsample is None, "64 channels in and out, or 128"
        return [layer for layer in model.conv1.modules() if isinstance(layer, nn.Conv2d)]

    for usual, wide in zip(stem(1), stem(2), strict=True):
        assert wide.out_channels == 2 * usual.out_channels
        assert (wide.kernel_size, wide.stride, wide.padding) == (usual.kernel_size, usual.stride, usual.padding)
        fan_out = wide.out_channels * wide.kernel_size[0] ** 2
        assert float(wide.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), "as He et al. initialise it"


def test_a_wide_encoder_is_decided_by_its_seed() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = create("test_resnet", 16, seed=3, width=2).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert equal(first, create("test_resnet", 16, seed=3, width=2).state_dict())
    assert not equal(first, create("test_resnet", 16, seed=4, width=2).state_dict())


@pytest.mark.parametrize("name", ["mine", "test_convnext", "resnext26ts", "ecaresnet50d_pruned"])
def test_what_cannot_be_made_wider_is_refused(name: str) -> None:
    backbone("mine")(small)
    check_backbone(name, image_size=32, weights=None)
    with pytest.raises(
        ConfigError, match=f"^Leave the control wide out, .* only these can have width 2, but backbone is {name!r}"
    ):
        check_backbone(name, image_size=32, weights=None, width=2)


def test_a_wide_experience_has_a_key_of_its_own() -> None:
    usual, wide = (resolve_trial(replace_paths(TINY, {**WRITTEN_DOWN, "width": width})) for width in (1, 2))
    keys = [experience_key(trial.config, trial.config.stimuli, "f", CPU) for trial in (usual, wide)]
    assert keys[0] == "cfdd41c6aa42f714", "as before there were widths: else stored experiences are not found any more"
    assert keys[1] != keys[0]
    assert not shared_runs(usual).keys() & shared_runs(wide).keys()


@pytest.mark.parametrize("size", [16, 32])
def test_statistics_that_are_recomputed_are_those_of_the_images(size: int) -> None:
    encoder = create("test_resnet", size)
    task = 3 + 2 * torch.randn(65, 3, size, size, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    foreign = encoder.eval()(task)
    recompute_statistics(encoder, task.split(32))  # of the last image alone there are none
    assert not any(module.training for module in encoder.modules())
    after = encoder.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == {key for key in before if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    first = next(module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d))
    stem: Any = encoder.model.conv1
    seen = (stem[0] if isinstance(stem, nn.Sequential) else stem)(task[:64])
    torch.testing.assert_close(first.running_mean, seen.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert first.momentum == 0.1
    adapted = encoder(task)
    as_trained = encoder.train()(task)
    assert (adapted - as_trained).abs().mean() < 0.2 * (foreign - as_trained).abs().mean()


def test_an_encoder_without_batchnorm_has_no_statistics_and_sees_no_image() -> None:
    images = iter([torch.rand(2, 3, 32, 32)])
    encoder = create("test_vit")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    recompute_statistics(encoder, images)
    assert next(images, None) is not None, "an image was asked for"
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("name", "size", "rule"),
    [
        ("resnet19", 32, "has no 'resnet19': did you mean .*'resnet18'"),
        ("vit_tinny", 32, "did you mean .*'vit_tiny'"),
        ("vit_tiny", 36, "multiple of 8, 32 say: .* but image_size is 36"),
        ("efficientformer_l1", 32, "'efficientformer_l1' must turn images of 32 px into one vector each"),
    ],
)
def test_what_cannot_be_made_is_refused(name: str, size: int, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        create(name, size)


def saved(path: Path, name: str, **options: Any) -> tuple[Path, dict[str, Tensor]]:
    import timm

    torch.manual_seed(123)
    state = timm.create_model(name, **options).state_dict()
    torch.save(state, path)
    return path, state


def test_a_resnet_starts_from_a_file_but_for_its_stem(tmp_path: Path) -> None:
    path, state = saved(tmp_path / "weights.pth", "resnet18", num_classes=7)
    model = create("resnet18", weights=str(path)).model.state_dict()
    assert model.keys() == {key for key in state if not key.startswith("fc.")}
    assert all(torch.equal(value, state[key]) for key, value in model.items() if key != "conv1.weight")
    assert equal(model, create("resnet18", weights=str(path)).model.state_dict())


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny"])
def test_a_vit_starts_from_a_file_of_its_own_size_or_another(tmp_path: Path, name: str) -> None:
    timm_name = "vit_tiny_patch16_224" if name == "vit_tiny" else name
    path, state = saved(tmp_path / "same.pth", timm_name, img_size=32, patch_size=4, num_classes=0)
    assert equal(create(name, weights=str(path)).model.state_dict(), state)
    path, state = saved(tmp_path / "larger.pth", timm_name, img_size=224, patch_size=16)
    model = create(name, weights=str(path)).model.state_dict()
    assert torch.equal(model["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    assert model["pos_embed"].shape == (1, 65, state["cls_token"].shape[-1])


@pytest.mark.parametrize("kind", ["another family", "another size", "text", "empty", "list", "foreign", "code", "half"])
def test_a_file_that_does_not_fit_is_refused_and_never_half_loaded(tmp_path: Path, kind: str) -> None:
    path, ran = tmp_path / "weights.pth", tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(ran),))

    match kind:
        case "another family":
            saved(path, "test_vit")
        case "another size":
            saved(path, "resnet18")
        case "text":
            path.write_text("hello\n")
        case "empty":
            path.touch()
        case "list":
            torch.save([1, 2], path)
        case "foreign":
            torch.save({"a": torch.ones(3)}, path)
        case "code":
            path.write_bytes(pickle.dumps(Evil()))
        case "half":
            _, state = saved(path, "test_resnet")
            torch.save({key: value for key, value in state.items() if not key.startswith("layer4")}, path)
    with pytest.raises(ConfigError, match=r"(?s)Give a file of weights .*weights\.pth' must fit the backbone, but"):
        create("test_resnet", weights=str(path))
    assert not ran.exists()


def test_a_file_that_is_not_there_is_refused_without_building(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Correct the path of weights: .*none\.pth' is not there"):
        check_backbone("resnet18", image_size=32, weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_cannot_be_reached_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: bool) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", offline)
    if not offline:  # nothing listens there
        monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}")
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"Mend the network, .*: weights='hub' needs timm's hub, but 'timm/"):
        create("test_resnet", weights="hub")
    assert time.monotonic() - started < 10


def test_a_model_that_the_hub_has_no_weights_for_is_said_without_a_network() -> None:
    with pytest.raises(ConfigError, match=r"Leave weights out, .*which has none for 'vit_base_patch16_18x2_224'"):
        check_backbone("vit_base_patch16_18x2_224", image_size=32, weights="hub")


# A user's own


def small(*, normed: bool = True, width: int = 6) -> nn.Module:
    norm = nn.BatchNorm2d(4) if normed else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, width))


def test_a_registered_factory_gives_both_encoders_of_a_trial(storage: Path) -> None:
    @backbone("mine")
    def mine(image_size: int, *, drop_path: float = 0.0) -> nn.Module:
        asked.append((image_size, drop_path))
        return small()

    asked: list[tuple[int, float]] = []
    config = tiny(backbone="mine", drop_path=0.25, regulation__kind="dynamic")
    outcome, recorder, network = run(config, storage)
    assert asked == [(16, 0.25)] * 2
    assert outcome.end.value == "completed"
    assert len(recorder.epochs("pretraining")) == 1
    assert network["plain.model.0.weight"].shape == network["emotional.model.0.weight"].shape == (4, 3, 3, 3)
    again, _, same = run(config, storage, folder=storage / "again")
    assert equal(network, same)
    assert again.pretraining.paid_seconds == outcome.pretraining.paid_seconds  # of the very same trial


def test_a_registered_class_is_made_with_what_it_takes_and_from_the_seed() -> None:
    @backbone("mine")
    class Mine(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.options = options
            self.net = small()

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = self.net(images)
            return features

    before = torch.get_rng_state()
    encoder, same, other = create("mine", seed=3), create("mine", seed=3), create("mine", seed=4, drop_path=0.5)
    assert torch.equal(before, torch.get_rng_state())
    assert (encoder.width, other.model.options) == (6, {"image_size": 32, "drop_path": 0.5})
    assert equal(encoder.state_dict(), same.state_dict())
    assert not equal(encoder.state_dict(), other.state_dict())
    backbone("seresnet18")(small)  # goes before timm's
    assert create("seresnet18").width == 6


def test_the_code_of_a_registered_backbone_is_part_of_the_key() -> None:
    plain = code_fingerprint("resnet18")
    backbone("mine")(small)
    assert (plain, code_fingerprint("mine")) == (None, source_fingerprint(small))
    keys = [key_of("mine")]
    BACKBONES.add("mine", Backbone(small, "another code"))
    keys.append(key_of("mine"))
    assert keys[0] != keys[1]


def key_of(name: str) -> str:
    config = resolve_trial(tiny(backbone=name)).config
    return experience_key(config, config.stimuli, "f", CPU)


def test_norms_and_biases_of_a_registered_backbone_do_not_decay() -> None:
    backbone("mine")(small)
    net = EmotionalNet(create("mine"), 3, seed=0)
    optimizer = build_optimizer(net, OptimizerConfig(weight_decay=0.05))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decay = {names[id(p)] for group in optimizer.param_groups for p in group["params"] if group["weight_decay"] > 0}
    assert decay == {"encoder.model.0.weight", "encoder.model.5.weight", "head.weight"}


def test_a_registered_backbone_starts_from_a_file_and_knows_no_hub(tmp_path: Path) -> None:
    backbone("mine")(small)
    torch.manual_seed(7)
    state = small().state_dict()
    torch.save(state, tmp_path / "weights.pth")
    assert equal(create("mine", weights=str(tmp_path / "weights.pth")).model.state_dict(), state)
    torch.save({"0.weight": state["0.weight"]}, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"(?s)Give a file of weights that 'mine' was saved to, .*Missing key"):
        create("mine", weights=str(tmp_path / "weights.pth"))
    with pytest.raises(ConfigError, match=r"Leave weights out, or give a file: .*none for 'mine'"):
        check_backbone("mine", image_size=32, weights="hub")


@pytest.mark.parametrize(
    ("factory", "drop_path", "rule"),
    [
        (lambda: nn.Conv2d(3, 4, 3), 0.0, "'mine' must turn images of 32 px into one vector each, but it does not"),
        (lambda: "resnet18", 0.0, "Return a torch.nn.Module from backbone 'mine': it returns str"),
        (small, 0.5, "Set drop_path to 0, or let backbone 'mine' take it: it is 0.5"),
    ],
)
def test_a_factory_that_cannot_serve_is_refused(factory: Any, drop_path: float, rule: str) -> None:
    BACKBONES.add("mine", Backbone(factory, ""))
    with pytest.raises(ConfigError, match=rule):
        create("mine", drop_path=drop_path)


def test_a_registered_backbone_that_cannot_recompute_is_refused_kindly_when_memory_is_too_small(storage: Path) -> None:
    backbone("mine")(small)
    with room_for(3), pytest.raises(torch.OutOfMemoryError, match="lower batch_size, choose a backbone without BatchNorm"):
        run(tiny(backbone="mine"), storage)
    BACKBONES.add("mine", Backbone(partial(small, normed=False), ""))
    with room_for(3):
        outcome, _, _ = run(tiny(backbone="mine"), storage)
    assert outcome.oom == OomState(micro_batch_size=2)


def test_a_name_like_a_registered_one_is_pointed_to() -> None:
    backbone("mynetwork")(small)
    with pytest.raises(ConfigError, match=r"register yours .*@emoreg.backbone\('mynetwrk'\).*did you mean .*'mynetwork'"):
        create("mynetwrk")
