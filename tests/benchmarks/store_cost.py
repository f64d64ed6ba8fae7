"""What the experience store costs: a hit against plain loading, and a checkpoint's stall against plain saving.

    python -m tests.benchmarks.store_cost

A ResNet-18 with AdamW's state, alternating in one process. A hit (key, look-up, checksum, weights into the net, the note of
the use) may cost 1.2 of ``torch.load`` and ``load_state_dict`` of the same content; what a checkpoint holds up the training
loop, 0.5 of ``torch.save``. The write itself takes as long as any, on another core: where none is free, the loop loses that.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from emoreg.config import ImageSetConfig, PretrainingConfig, TrialConfig
from emoreg.config.resolved import resolve_trial
from emoreg.data import load
from emoreg.storage import checkpoint
from emoreg.storage.checkpoint import State, Writer
from emoreg.storage.experience import ExperienceStore
from emoreg.storage.files import Files
from emoreg.training.context import TrialContext
from emoreg.training.experience import load_or_pretrain
from emoreg.training.history import History
from emoreg.training.learners import EmotionLearner
from emoreg.training.loop import fit
from emoreg.training.model import create_emotional_net
from emoreg.training.stages import pretraining_stage
from tests.helpers.trials import CPU

ROUNDS = 15
STEPS = 5
CONFIG = TrialConfig(
    backbone="resnet18",
    stimuli=ImageSetConfig(name="digits", num_images=64, validation_fraction=0.0),
    pretraining=PretrainingConfig(epochs=1, batch_size=32),
)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        hit, plain, size = hits(folder)
        print(
            f"{platform.machine()}, torch {torch.__version__}, 1 thread, {CONFIG.backbone} with AdamW's state, "
            f"{size / 1e6:.0f} MB, {ROUNDS} rounds, page cache warm; median (range) in ms"
        )
        show("plain load into the net", plain, plain)
        show("hit of the store", hit, plain)
        call, loop, saved = stalls(folder)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        show("plain save, loop held up", saved, saved)
        show("background save, the call", call, saved)
        show("background save, all that the loop lost", loop, saved)


def show(name: str, seconds: list[float], reference: list[float]) -> None:
    low, middle, high = (1e3 * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
    ratio = statistics.median(seconds) / statistics.median(reference)
    print(f"{name}: {middle:.1f} ({low:.1f} to {high:.1f}), {ratio:.2f} of plain")


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def hits(folder: Path) -> tuple[list[float], list[float], int]:
    """Seconds of a hit and of a plain load, alternating, and the size of the snapshot."""
    load_images = partial(load, storage=folder)
    stage = pretraining_stage(resolve_trial(CONFIG), load_images, CPU)
    net = create_emotional_net(CONFIG, stage.image_set.num_outputs)
    learner = EmotionLearner(CONFIG, net, regression=False)
    store = ExperienceStore(str(folder / "experience"), user="benchmark")
    context = TrialContext(load_images=load_images, store=store, folder=folder / "trial", device=CPU, checkpoint_seconds=1e9)

    def obtain() -> None:
        with load_or_pretrain(stage, context, History("benchmark", stage.trial.identity, [])) as checkpointer:
            fit(stage, learner, checkpointer=checkpointer)

    obtain()
    (snapshot,) = (folder / "experience").glob("*/1.ckpt")
    copy = folder / "plain.pt"
    torch.save(checkpoint.load(Files(str(snapshot.parent)), snapshot.name), copy)

    def load_plainly() -> None:
        net.load_state_dict(torch.load(copy, map_location="cpu", weights_only=True)["network"])

    obtain()
    load_plainly()
    hit, plain = [], []
    for _ in range(ROUNDS):
        plain.append(timed(load_plainly))
        hit.append(timed(obtain))
    return hit, plain, snapshot.stat().st_size


def stalls(folder: Path) -> tuple[list[float], list[float], list[float]]:
    """Seconds that a loop stands still for a save: the call alone, all of it, and that of a plain save.

    All of it is what a stretch of steps with a save at its beginning takes longer than one without. The stretch outlasts the
    write, and leaves nothing of it to the next.
    """
    net = create_emotional_net(CONFIG, 10)
    optimizer = torch.optim.AdamW(net.parameters())
    images = torch.rand(1, 3, 32, 32)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), torch.zeros(1, dtype=torch.long)).backward()
            optimizer.step()

    def state() -> State:
        return {"net": net.state_dict(), "optimizer": optimizer.state_dict()}

    save = partial(checkpoint.save, Files(str(folder)), "ours.ckpt")
    call, loop, saved = [], [], []
    with Writer() as writer:
        steps()
        writer.submit(save, state())
        for _ in range(ROUNDS):
            writer.flush()
            without = timed(steps)
            saved.append(timed(lambda: torch.save(state(), folder / "plain.pt")))
            call.append(timed(lambda: writer.submit(save, state())))
            loop.append(call[-1] + timed(steps) - without)
    return call, loop, saved


if __name__ == "__main__":
    main()
