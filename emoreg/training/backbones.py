"""Encoders: images in, one feature vector each out. timm's models fitted to small images, and a user's own.

The only module that knows timm.

Legend: B images, S their side in pixels, D features.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub
import timm
import torch
from jaxtyping import Float
from timm.models import ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from emoreg.config.code import source_fingerprint
from emoreg.config.registry import BACKBONES
from emoreg.data.layout import POINTER_CURE, is_pointer
from emoreg.errors import ConfigError
from emoreg.seeding import global_stream
from emoreg.storage.files import expand
from emoreg.training.weights import read_weights

_ALIASES = {"vit_tiny": "vit_tiny_patch16_224", "vit_small": "vit_small_patch16_224"}
_PATCHES_PER_SIDE = 8
_LARGEST_WITHOUT_MAX_POOL = 64
_HUB_SECONDS = 5.0


Factory = Callable[..., nn.Module]


@dataclass(frozen=True, slots=True)
class Backbone:
    """An entry of ``BACKBONES``: a factory, and the fingerprint of its code, which decides weights as its name does."""

    build: Factory
    fingerprint: str


def backbone(name: str) -> Callable[[Factory], Factory]:
    """Register the decorated factory (a function, or a class of modules) as a backbone, for ``TrialConfig.backbone``.

    It returns a module that turns images (B 3 S S) into features (B D). It is called with ``image_size`` and ``drop_path`` if
    it takes them, and draws its weights from torch's global random stream.

    Args:
        name: of the backbone. It goes before a model of timm of the same name.

    Example:
        >>> import emoreg
        >>> from torch import nn
        >>> @emoreg.backbone("tiny_mlp")
        ... def tiny_mlp(image_size: int) -> nn.Module:
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, 32), nn.ReLU())
        >>> emoreg.TrialConfig(backbone="tiny_mlp").backbone
        'tiny_mlp'
    """

    def register(factory: Factory) -> Factory:
        BACKBONES.add(name, Backbone(factory, source_fingerprint(factory)), origin=factory)
        return factory

    return register


def code_fingerprint(name: str) -> str | None:
    """The fingerprint of a user's backbone; None for a model of timm, which goes by its name."""
    return BACKBONES[name].fingerprint if name in BACKBONES else None


class Encoder(nn.Module):
    """A model that gives features.

    Attributes:
        width: D, the number of features.
    """

    def __init__(self, model: nn.Module, image_size: int) -> None:
        super().__init__()
        self.model = model
        self._attentions = [layer for layer in model.modules() if getattr(layer, "fused_attn", False)]
        self._compiled_sizes: frozenset[int] = frozenset()
        self._compiled: Callable[[nn.Module, Tensor], Tensor] | None = None
        with torch.no_grad():
            _, self.width = model.eval()(torch.zeros(1, 3, image_size, image_size)).shape
        model.train()

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """One feature vector for each image.

        Attention is two products and a softmax in bf16 on a CPU, where the backward pass of the fused kernel takes 1.2 to 3.6
        times as long (by length, 1,025 tokens to 65), and else as timm has it.
        """
        if self._attentions and not torch.compiler.is_compiling():
            is_fused = not (images.device.type == "cpu" and torch.is_autocast_enabled("cpu"))
            for attention in self._attentions:
                attention.fused_attn = is_fused  # type: ignore[assignment]
        if self._compiled is not None and self.training and len(images) in self._compiled_sizes:
            return self._compiled(self.model, images)
        features: Tensor = self.model(images)
        return features

    def compile_training(self, sizes: frozenset[int], compiled: Callable[[nn.Module, Tensor], Tensor] | None) -> None:
        """Compute training batches of these sizes by ``compiled``, which takes the model and images; None: none any more."""
        self._compiled_sizes, self._compiled = sizes, compiled


def check_backbone(name: str, *, image_size: int, weights: str | None, width: int = 1) -> None:
    """Refuse a backbone that `create_encoder` could not make, without making it.

    Raises:
        ConfigError: for a name that is not registered and that timm does not have, a size that a ViT's patches do not divide, a
            width that it cannot have, a weights file that is not there, a hub that cannot be reached.
    """
    timm_name = _ALIASES.get(name, name)
    if name not in BACKBONES:
        if not timm.is_model(timm_name):
            near = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models(), *_ALIASES], n=4, cutoff=0.5)
            raise ConfigError(
                f"Name a model of timm as backbone, or register yours in the study file (@emoreg.backbone({name!r})): it must "
                f"be a timm model, or registered, but timm {timm.__version__} has no {name!r}: did you mean {near}?"
            )
        if _has_patches(timm_name) and image_size % _PATCHES_PER_SIDE:
            raise ConfigError(
                f"Choose an image_size that is a multiple of {_PATCHES_PER_SIDE}, 32 say: a ViT's patches have a side of "
                f"image_size / {_PATCHES_PER_SIDE}, but image_size is {image_size}"
            )
    if width > 1 and (name in BACKBONES or not _has_widths(timm_name)):
        raise ConfigError(
            "Leave the control wide out, or name a ResNet, ViT or DeiT of timm as backbone: only these can have width 2, but "
            f"backbone is {name!r}"
        )
    if weights == "hub":
        _check_hub(name, timm_name)
    elif weights is not None:
        _check_file(weights)


def create_encoder(
    name: str,
    *,
    image_size: int,
    drop_path: float,
    weights: str | None,
    seed: int,
    small_stem: bool = True,
    width: int = 1,
) -> Encoder:
    """The encoder ``name`` for images of ``image_size`` pixels, initialised from ``seed`` without touching global state.

    Of timm's models, the ResNet family with ``small_stem`` gets a 3x3 stem of stride 1, and no max-pool up to 64 px; the ViT
    family (DeiT too) gets ``img_size`` and patches of image_size / 8 (8 x 8 tokens). Every other one is taken as it is made,
    with ``img_size`` if it has one; so is what is registered. ``width`` multiplies the channels of a ResNet, its stem's too,
    and the embedding and heads of a ViT.

    Raises:
        ConfigError: the model cannot be made so, or weights do not fit or cannot be had.
    """
    assert width == 1 or weights is None
    check_backbone(name, image_size=image_size, weights=weights, width=width)
    with global_stream(seed):
        if name in BACKBONES:
            model = _registered(name, image_size, drop_path, weights)
        else:
            model = _timm_model(_ALIASES.get(name, name), image_size, drop_path, weights, seed, width)
            if isinstance(model, ResNet) and small_stem:
                _fit_resnet(model, image_size)
        try:
            return Encoder(model, image_size)
        except (AssertionError, AttributeError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"Choose another image_size or backbone: {name!r} must turn images of {image_size} px into one vector each, "
                f"but it does not ({error})"
            ) from error


def _registered(name: str, image_size: int, drop_path: float, weights: str | None) -> nn.Module:
    """A user's own model."""
    factory = BACKBONES[name].build
    parameters = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    options = {"image_size": image_size, "drop_path": drop_path}
    if drop_path > 0 and not (takes_any or "drop_path" in parameters):
        raise ConfigError(f"Set drop_path to 0, or let backbone {name!r} take it: it is {drop_path}")
    model = factory(**{key: value for key, value in options.items() if takes_any or key in parameters})
    if not isinstance(model, nn.Module):
        raise ConfigError(f"Return a torch.nn.Module from backbone {name!r}: it returns {type(model).__name__}")
    if weights is not None:
        try:
            model.load_state_dict(read_weights(expand(weights), model.state_dict()))
        except Exception as error:  # a file can be wrong in more ways than there are names for
            raise _misfit(weights, name, f"it cannot be loaded ({type(error).__name__}: {error})") from error
    return model


def _timm_model(timm_name: str, image_size: int, drop_path: float, weights: str | None, seed: int, width: int) -> nn.Module:
    options: dict[str, Any] = {"num_classes": 0}
    if drop_path > 0:
        options["drop_path_rate"] = drop_path
    if _has_patches(timm_name):
        options |= {"img_size": image_size, "patch_size": image_size // _PATCHES_PER_SIDE}
    elif timm.get_pretrained_cfg(timm_name).fixed_input_size:
        options["img_size"] = image_size
    try:
        model: nn.Module = timm.create_model(timm_name, **options) if width == 1 else _wider(timm_name, options, width)
    except TypeError as error:
        raise ConfigError(f"Leave out what backbone {timm_name!r} does not take, of the options {options}: {error}") from error
    if weights is not None:
        with global_stream(seed):
            model = _with_weights(timm_name, options, weights, untrained=model)
    return model


def _wider(timm_name: str, options: Mapping[str, Any], width: int) -> nn.Module:
    """The model with so many times as many channels."""
    usual: Any = timm.create_model(timm_name, **options, device="meta")  # its sizes alone
    model: nn.Module = timm.create_model(timm_name, **options, **_sizes(usual, width))
    if isinstance(usual, ResNet) and isinstance(usual.conv1, nn.Conv2d):
        model.conv1 = _single_stem(width * usual.conv1.out_channels, side=7, stride=2)
    return model


def _sizes(usual: Any, width: int) -> dict[str, Any]:
    """What makes timm's model wider: a ViT gets more heads, each as wide as before."""
    if not isinstance(usual, ResNet):
        heads = next(layer.num_heads for layer in usual.blocks.modules() if hasattr(layer, "num_heads"))
        return {"embed_dim": width * usual.embed_dim, "num_heads": width * heads}
    stem, *stages = (width * info["num_chs"] for info in usual.feature_info)
    layers = (usual.layer1, usual.layer2, usual.layer3, usual.layer4)
    channels = [outputs // layer[-1].expansion for outputs, layer in zip(stages, layers, strict=True)]
    # timm gives a single convolution 64 channels, whatever is asked: a deep stem of the right width first stands in for it.
    is_deep = {"stem_type": "deep"} if isinstance(usual.conv1, nn.Conv2d) else {}
    return {"channels": channels, "stem_width": stem // 2, **is_deep}


def _misfit(weights: str, name: str, problem: str) -> ConfigError:
    return ConfigError(
        f"Give a file of weights that {name!r} was saved to, or leave weights out: {weights!r} must fit the backbone, but "
        f"{problem}"
    )


def _with_weights(timm_name: str, options: Mapping[str, Any], weights: str, *, untrained: nn.Module) -> nn.Module:
    """The model with weights from a file or the hub.

    timm leaves a layer as initialised if the weights have none of its name. So each is compared with ``untrained``, the
    model from the same seed without weights: what is equal to the bit was not loaded.
    """
    try:
        with TemporaryDirectory() as folder:
            source = {}
            if weights != "hub":
                file = Path(folder) / "weights.pth"  # from which timm brings what has another size into its place
                torch.save(read_weights(expand(weights), untrained.state_dict()), file)
                source = {"pretrained_cfg_overlay": {"file": str(file), "custom_load": False}}
            model: nn.Module = timm.create_model(timm_name, pretrained=True, **source, **options)
    except Exception as error:  # a file can be wrong in more ways than there are names for
        raise _misfit(weights, timm_name, f"it cannot be loaded ({type(error).__name__}: {error})") from error
    pairs = zip(untrained.named_parameters(), model.parameters(), strict=True)
    left = [key for (key, before), after in pairs if before.dim() > 1 and before.any() and torch.equal(before, after)]
    if left:
        raise _misfit(weights, timm_name, f"it has none for {len(left)} layers, {', '.join(left[:3])} among them")
    return model


def _check_file(weights: str) -> None:
    path = expand(weights)
    if not path.is_file():
        raise ConfigError(f"Correct the path of weights: they must be a file or 'hub', but {weights!r} is not there")
    with open(path, "rb") as stream:
        if is_pointer(stream.read(100)):
            raise ConfigError(f"Fetch the weights themselves ({POINTER_CURE}): {weights!r} is a pointer of git-lfs")


def _check_hub(name: str, timm_name: str) -> None:
    """Refuse a hub that cannot be reached, at once: the download itself would try again for up to minutes."""
    repository, filename = None if name in BACKBONES else timm.get_pretrained_cfg(timm_name).hf_hub_id, "model.safetensors"
    if repository is None:
        raise ConfigError(f"Leave weights out, or give a file: weights='hub' are timm's, which has none for {name!r}")
    if huggingface_hub.try_to_load_from_cache(repository, filename) is None:
        try:
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, filename), timeout=_HUB_SECONDS)
        except Exception as error:  # the HTTP library's own, which changes with the hub's version
            raise ConfigError(
                "Mend the network, give a local file of weights, or leave weights out: weights='hub' needs timm's hub, but "
                f"{repository!r} cannot be had from it ({error})"
            ) from error


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters: norms, biases, scalars and a ViT's tokens and positions do not decay."""
    kept = {
        f"{prefix}.model.{name}"
        for prefix, encoder in module.named_modules()
        if isinstance(encoder, Encoder) and hasattr(encoder.model, "no_weight_decay")
        for name in encoder.model.no_weight_decay()  # type: ignore[operator]
    }
    decayed: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim > 1 and not name.endswith(".bias")
            is_kept = any(fnmatch.fnmatch(name, pattern) for pattern in kept)
            decayed[weight_decay != 0 and is_weight and not is_kept].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
        for decays, parameters in decayed.items()
        if parameters
    ]


@torch.no_grad()
def recompute_statistics(encoder: Encoder, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of BatchNorm by their means over batches of images; all else is in evaluation mode.

    A batch of a single image is left out, since BatchNorm needs two.
    """
    layers = [layer for layer in encoder.modules() if isinstance(layer, _BatchNorm)]
    if not layers:
        return
    encoder.eval()
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches, not a moving one
        layer.train()
    for images in batches:
        if len(images) > 1:
            encoder(images)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
        layer.eval()


def recompute_activations(module: nn.Module) -> bool:
    """Have the encoders in ``module`` compute activations again in the backward pass rather than keep them; False if none can.

    The backward pass then makes the forward pass again, which updates BatchNorm's running statistics unless they are held.
    """
    able = False
    for encoder in module.modules():
        if isinstance(encoder, Encoder):
            with suppress(AttributeError, AssertionError):  # how models say that they cannot
                encoder.model.set_grad_checkpointing(True)  # type: ignore[operator]
                encoder.compile_training(frozenset(), None)  # the graph keeps its own choice of activations
                able = True
    return able


def _has_patches(timm_name: str) -> bool:
    return _family(timm_name) in ("vision_transformer", "deit")


def _has_widths(timm_name: str) -> bool:
    """Whether ``_wider`` can make a model; the layers of pruned ones have sizes of their own."""
    return _has_patches(timm_name) or (_family(timm_name) == "resnet" and "_pruned" not in timm_name)


def _family(timm_name: str) -> str:
    """The module of timm that a model is from."""
    module: str = timm.model_entrypoint(timm_name).__module__
    return module.removeprefix("timm.models.")


def _fit_resnet(model: ResNet, image_size: int) -> None:
    stem = model.conv1
    if isinstance(stem, nn.Conv2d):
        model.conv1 = _single_stem(stem.out_channels, side=3, stride=1)
    else:  # the deep stem is made of 3x3 convolutions already; only its stride goes
        stem[0].stride = (1, 1)
    if image_size <= _LARGEST_WITHOUT_MAX_POOL:
        model.maxpool = nn.Identity()


def _single_stem(channels: int, *, side: int, stride: int) -> nn.Conv2d:
    """A ResNet's first convolution, initialised as timm does."""
    stem = nn.Conv2d(3, channels, side, stride=stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem
