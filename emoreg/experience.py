"""Experiences: what pre-training leaves in an encoder, kept by content so that no trial pays for one twice.

``<storage>/experience/<key>/<epochs>.ckpt`` is the emotional net after that many epochs. The key is the hash of all that
decides its weights, except the length: pre-training's schedule does not know its end, so a longer experience continues a
shorter one, and trials that differ in regulation or length share a trunk. One process at a time trains a trunk (a file lock);
the others wait and then find it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock

from emoreg import checkpoint
from emoreg.checkpoint import State
from emoreg.config import ImageSetConfig, TrialConfig
from emoreg.errors import ConfigError
from emoreg.imagesets.batches import Batches
from emoreg.optimization import uses_bf16
from emoreg.pretrain import EmotionalNet, pretrain
from emoreg.records import EpochRecord

_TRAINER_VERSION = 1  # raise it when the numbers of pre-training change: old snapshots are then left alone
_SNAPSHOT_SECONDS = 60.0


def experience_key(config: TrialConfig, source: ImageSetConfig, fingerprint: str, device: torch.device) -> str:
    """Sixteen hexadecimal digits that differ whenever the weights would.

    Args:
        config: the applied configuration.
        source: which images of the set are trained on: the stimuli, or the neutral set cut to their number.
        fingerprint: of the whole set, which stands for its name, path and target.
        device: its type decides what precision "auto" means.
    """
    pretraining = asdict(config.pretraining)
    del pretraining["epochs"]
    images = asdict(source)
    del images["name"], images["path"], images["target"]
    decisive = {
        "trainer": _TRAINER_VERSION,
        "backbone": config.backbone,
        "drop_path": config.drop_path,
        "weights": _weights_digest(config.weights),
        "image_size": config.image_size,
        "images": images,
        "fingerprint": fingerprint,
        "pretraining": pretraining,
        "seed": config.seed,
        "deterministic": config.deterministic,
        "bf16": uses_bf16(config, device),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def gain_experience(
    config: TrialConfig,
    net: EmotionalNet,
    stimuli: Batches,
    validation: Batches | None,
    *,
    regression: bool,
    source: ImageSetConfig,
    fingerprint: str,
    storage: Path,
    report: Callable[[EpochRecord], None],
) -> tuple[float, float]:
    """Bring ``net`` to the state after ``config.pretraining.epochs`` epochs: loaded, continued or trained from the start.

    Returns:
        Seconds of pre-training that this trial paid for, over all its attempts, 0 where another trial had paid; and the
        seconds that the whole experience cost, whoever paid.

    Raises:
        Diverged: see ``pretrain``.
    """
    epochs = config.pretraining.epochs
    if epochs == 0:
        return 0.0, 0.0
    folder = storage / "experience" / experience_key(config, source, fingerprint, stimuli.device)
    folder.mkdir(parents=True, exist_ok=True)
    history: list[EpochRecord] = []
    saved = time.monotonic()

    def keep(state: State) -> None:
        nonlocal saved
        done = state["epochs"]
        if done == epochs or done.bit_count() == 1 or time.monotonic() - saved > _SNAPSHOT_SECONDS:
            # pretrain reports an epoch once it is safe, so the epoch of this state is not in the history yet
            checkpoint.save(folder / f"{done}.ckpt", {**state, "history": [*map(asdict, history), state["record"]]})
            saved = time.monotonic()

    def remember(row: EpochRecord) -> None:
        history.append(row)
        report(row)

    with FileLock(folder / ".lock"):
        start = _longest(folder, epochs)
        if start is not None:
            history = [EpochRecord(**row) for row in start["history"]]
            for row in history:
                if row.identity == config.identity:  # paid for by an earlier attempt of this very trial
                    report(row)
        if start is not None and start["epochs"] == epochs:
            net.load_state_dict(start["net"])
        else:
            pretrain(
                config,
                net,
                stimuli,
                validation,
                regression=regression,
                start=start,
                save=keep,
                report=remember,
            )
    paid = sum(row.seconds for row in history if row.identity == config.identity)
    return paid, sum(row.seconds for row in history)


def _longest(folder: Path, epochs: int) -> State | None:
    """The longest snapshot of at most ``epochs`` epochs that can be trusted."""
    lengths = sorted((int(path.stem) for path in folder.glob("*.ckpt") if path.stem.isdigit()), reverse=True)
    for length in lengths:
        if length <= epochs:
            state = checkpoint.load(folder / f"{length}.ckpt")
            if state is not None:
                return state
    return None


def _weights_digest(weights: str | None) -> str | None:
    if weights is None or weights == "hub":
        return weights
    try:
        with open(Path(weights).expanduser(), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"weights must be a readable file, but {weights!r} is not ({error}): correct the path") from error
