"""A trained network outside of its study: written to a folder, loaded from it, and asked for scores.

    weights.safetensors   every tensor of the network
    config.json           architecture, classes, normalisation, and the digest of the weights
    README.md             the model card: what it is, its numbers and their intervals
    network.onnx          the network for other runtimes, where it was asked for

Legend: B images, S their side, C classes.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import xxhash
from jaxtyping import Float, Shaped
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, compiler, nn
from torch import channels_last as CHANNELS_LAST

from emoreg.config import ImageSetConfig, TrialConfig, from_json, to_json
from emoreg.config.trial import Precision
from emoreg.data.augmentation import MEAN, STD
from emoreg.errors import ConfigError, StorageError
from emoreg.storage.files import Files
from emoreg.training.backbones import code_fingerprint
from emoreg.training.model import create_emotional_net, create_regulation
from emoreg.training.optim import autocast

WEIGHTS, CONFIG, CARD, ONNX = "weights.safetensors", "config.json", "README.md", "network.onnx"
_ONNX_PACKAGES = ("onnx", "onnxscript")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """What makes a network of weights.

    Attributes:
        trial: as it was run, without the places of its images and weights.
        identity: of the trial.
        class_names: by class index.
        image_size: side in pixels of the images that it takes.
        mean: that is taken from pixels in [0, 1].
        std: by which they are divided then.
        measured_balance: mean balance on the validation split; None where the trial has none.
        backbone_code: fingerprint of a registered backbone; None for one of timm's.
        versions: of what made the numbers, by package.
        digest: XXH3-128 of the file of weights.
        format: of this folder.
    """

    trial: TrialConfig
    identity: str
    class_names: tuple[str, ...]
    image_size: int
    mean: float = MEAN
    std: float = STD
    measured_balance: float | None = None
    backbone_code: str | None = None
    versions: Mapping[str, str]
    digest: str = ""
    format: int = 1


class ExportedNetwork(nn.Module):
    """A network as its trial left it, in evaluation mode: images in, scores of the classes out.

    On a CPU, with as many threads and the same batch, its scores are those of the trial's own evaluation, to the bit.

    Attributes:
        config: what it was made of.
        class_names: by class index.
    """

    def __init__(self, config: NetworkConfig, weights: Mapping[str, Tensor]) -> None:
        """Build the network and give it its weights.

        Raises:
            ConfigError: for a backbone that is not there, or is another one now.
        """
        code = code_fingerprint(config.trial.backbone)
        if code != config.backbone_code:
            now = "is not registered here" if code is None else "has other code here"
            raise ConfigError(
                f"Import the file that registers backbone {config.trial.backbone!r}, as it was when the network was trained: "
                f"it must be the same code, but it {now}"
            )
        super().__init__()
        self.config = config
        self.class_names = config.class_names
        num_emotions = len(weights["emotion_head.weight"]) if "emotion_head.weight" in weights else 1
        regulation = config.trial.regulation
        emotional = create_emotional_net(config.trial, num_emotions) if regulation.needs_emotional else None
        self.regulation = create_regulation(config.trial, emotional, len(config.class_names))
        try:
            self.regulation.load_state_dict(weights)
        except RuntimeError as error:
            raise ConfigError(
                f"Load it with the versions that made it ({_listed(config.versions)}): the weights must fit backbone "
                f"{config.trial.backbone!r} as it is made here, but {error}"
            ) from error
        self.eval()

    def forward(self, images: Shaped[Tensor, "B channels height width"]) -> Float[Tensor, "B C"]:
        """Scores of the classes, whose softmax is their probabilities and whose largest is the prediction.

        Args:
            images: B x 3 x S x S, RGB in [0, 1], of the side ``config.image_size``.

        Raises:
            ConfigError: for images of another shape or range.
        """
        if not compiler.is_compiling():
            self._check(images)
        pixels = images.contiguous(memory_format=CHANNELS_LAST)  # as a trial's batches lie in memory
        with autocast(self.config.trial, images.device):
            scores: Tensor = self.regulation((pixels - self.config.mean) / self.config.std).logits
        return scores

    def _check(self, images: Tensor) -> None:
        side = self.config.image_size
        if images.shape[1:] != (3, side, side):
            raise ConfigError(
                f"Resize the images (torch.nn.functional.interpolate(images, {side}), say): the network takes batches of 3 x "
                f"{side} x {side}, but these are {' x '.join(map(str, images.shape))}"
            )
        low, high = (0, 256) if not images.is_floating_point() else (float(images.min()), float(images.max()))
        if low < 0 or high > 1:
            raise ConfigError(
                f"Give floats in [0, 1], images / 255 say, not normalised: the network does that itself, but these are "
                f"{images.dtype} from {float(images.min()):g} to {float(images.max()):g}"
            )


def write_network(files: Files, config: NetworkConfig, weights: Mapping[str, Tensor], card: str, *, onnx: bool = False) -> None:
    """Write a network, in ONNX too if that is asked for; ``config.json``, without which there is none, comes last.

    Raises:
        ConfigError: for a folder that holds something else.
        OSError: where that fails.
    """
    names = {found.name for found in files.find(deep=False)}
    if names and WEIGHTS not in names:
        raise ConfigError(
            f"Give an empty folder, or one that does not exist yet: {CARD} and {CONFIG} would be replaced there, but "
            f"{files.uri!r} holds {', '.join(sorted(names)[:3])}"
        )
    content = save_tensors({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()})
    config = replace(config, digest=xxhash.xxh3_128(content).hexdigest())
    in_onnx = onnx_bytes(config, weights) if onnx else None
    files.write(WEIGHTS, content)
    files.write(CARD, card.encode())
    if in_onnx is None:
        files.remove(ONNX)  # of another network
    else:
        files.write(ONNX, in_onnx)
    files.write(CONFIG, json.dumps(to_json(config), indent=2).encode())


def onnx_bytes(config: NetworkConfig, weights: Mapping[str, Tensor]) -> bytes:
    """A network in ONNX, in float32: `images` B 3 S S, RGB in [0, 1], to `scores` B C, for any B."""
    trial = replace(config.trial, precision="float32")  # few runtimes compute in bf16
    network, side = ExportedNetwork(replace(config, trial=trial), weights), config.image_size
    with warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # torch's, about torch
        path = Path(folder) / ONNX
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, side, side),),
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["images"],
            output_names=["scores"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        )
        return path.read_bytes()


def check_onnx() -> None:
    """Refuse to write ONNX where the packages that do so are not installed."""
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f'Run pip install -e ".[onnx]", or export without ONNX: it needs the packages {" and ".join(_ONNX_PACKAGES)}, but '
            f"{' and '.join(missing)} cannot be imported"
        )


def load_network(folder: str | Path) -> ExportedNetwork:
    """The network that `emoreg export` or ``study.export`` has written to a folder (or URI), in evaluation mode, on the CPU.

    A registered backbone must be registered here too: import the file that does so first.

    Raises:
        ConfigError: where there is no network, or its backbone cannot be had.
        StorageError: where its files are damaged.

    Example:
        >>> import emoreg, torch
        >>> network = emoreg.load_network("exported")
        >>> scores = network(torch.rand(2, 3, 16, 16))
        >>> scores.shape, len([network.class_names[index] for index in scores.argmax(dim=1)])
        (torch.Size([2, 10]), 2)
    """
    files = Files(str(folder))
    try:
        config, content = from_json(NetworkConfig, json.loads(files.read(CONFIG).to_pybytes())), files.read(WEIGHTS)
    except FileNotFoundError as error:
        raise ConfigError(
            f"Name a folder that `emoreg export` has written: it must hold {CONFIG} and {WEIGHTS}, but {files.uri!r} does not"
        ) from error
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise StorageError(f"Export the network again: {CONFIG} of {files.uri!r} cannot be read ({error})") from error
    if xxhash.xxh3_128(content).hexdigest() != config.digest:
        raise StorageError(f"Export the network again: {WEIGHTS} of {files.uri!r} must be as it was written, but is not")
    return ExportedNetwork(config, load_tensors(content.to_pybytes()))


def exported_config(trial: TrialConfig, precision: Precision | None) -> TrialConfig:
    """A trial's configuration as it may leave its study: it names no places, and needs nothing that a study file registers.

    ``precision`` is what the trial computed in, where that is known.
    """

    def unplaced(images: ImageSetConfig) -> ImageSetConfig:
        return replace(images, path=None)

    return replace(
        trial,
        stimuli=unplaced(trial.stimuli),
        neutral=None if trial.neutral is None else unplaced(trial.neutral),
        relabelled=None if trial.relabelled is None else unplaced(trial.relabelled),
        task=unplaced(trial.task),
        weights=None,
        control="regulated",
        precision=precision or trial.precision,
        compile="off",
        metrics=(),
        probes=(),
    )


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
