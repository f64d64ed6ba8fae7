"""What the experience store costs: a hit against plain loading, and a checkpoint's stall against plain saving.

    python -m tests.benchmarks.store_cost [--rounds 15] [--backbone resnet18]

A ResNet-18 with AdamW's state, alternating in one process. A hit (key, look-up, checksum, weights into the net, the note of
the use) may cost 1.2 of ``torch.load`` and ``load_state_dict`` of the same content; what a checkpoint holds up the training
loop, 0.5 of ``torch.save``. The write itself takes as long as any, on another core: where none is free, the loop loses that.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import nn

import emoreg
from emoreg.config.resolved import resolve_trial
from emoreg.data import load
from emoreg.formatting import counted
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
from tests.benchmarks.common import machine, spread
from tests.helpers.trials import CPU

STEPS = 5


def main(rounds: int = 15, backbone: str = "resnet18") -> None:
    """Measure what the store costs, and print the table.

    Args:
        rounds: of each act, alternating.
        backbone: of what is loaded and saved.
    """
    torch.set_num_threads(1)
    config = emoreg.TrialConfig(
        backbone=backbone,
        stimuli=emoreg.ImageSetConfig(name="digits", num_images=64, validation_fraction=0.0),
        pretraining=emoreg.PretrainingConfig(epochs=1, batch_size=32),
    )
    with tempfile.TemporaryDirectory() as scratch:
        hit, load_time, size = hits(config, Path(scratch), rounds)
        call, loop, save_time = stalls(config, Path(scratch), rounds)
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}, 1 thread; {backbone} with AdamW's state, {size / 1e6:.0f} MB")
    print(f"{counted(rounds, 'round')}, page cache warm: median (lowest to highest)\n\n| | ms | of plain |\n|---|---|---|")
    print(row("`torch.load(weights_only=True)` into the net", load_time, load_time))
    print(row("a hit of the store, checksum included", hit, load_time))
    print(row("`torch.save`", save_time, save_time))
    print(row("checkpoint in the background: what the call takes", call, save_time))
    print(row("the same: all that the training loop loses", loop, save_time))


def row(name: str, seconds: Sequence[float], plain: Sequence[float]) -> str:
    """The table's row of an act, beside plain loading or saving."""
    ratio = statistics.median(seconds) / statistics.median(plain)
    return f"| {name} | {spread([1e3 * value for value in seconds])} | {ratio:.2f} |"


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def hits(config: emoreg.TrialConfig, folder: Path, rounds: int) -> tuple[list[float], list[float], int]:
    """Seconds of a hit and of a plain load, alternating, and the size of the snapshot."""
    load_images = partial(load, storage=folder)
    stage = pretraining_stage(resolve_trial(config), load_images, CPU)
    net = create_emotional_net(config, stage.image_set.num_outputs)
    learner = EmotionLearner(config, net, regression=False)
    store = ExperienceStore(str(folder / "experience"), user="benchmark")
    context = TrialContext(load_images=load_images, store=store, folder=folder / "trial", device=CPU, checkpoint_seconds=1e9)

    def obtain() -> None:
        with load_or_pretrain(stage, learner, context, History("benchmark", stage.trial.identity, [])) as checkpointer:
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
    for _ in range(rounds):
        plain.append(timed(load_plainly))
        hit.append(timed(obtain))
    return hit, plain, snapshot.stat().st_size


def stalls(config: emoreg.TrialConfig, folder: Path, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds that a loop stands still for a save: the call alone, all of it, and that of a plain save.

    All of it is what a stretch of steps with a save at its beginning takes longer than one without. The stretch outlasts the
    write, and leaves nothing of it to the next.
    """
    net = create_emotional_net(config, 10)
    optimizer = torch.optim.AdamW(net.parameters())
    images = torch.rand(1, 3, 32, 32)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images).logits, torch.zeros(1, dtype=torch.long)).backward()
            optimizer.step()

    def state() -> State:
        return {"net": net.state_dict(), "optimizer": optimizer.state_dict()}

    save = partial(checkpoint.save, Files(str(folder)), "ours.ckpt")
    call, loop, saved = [], [], []
    with Writer() as writer:
        steps()
        writer.submit(save, state())
        for _ in range(rounds):
            writer.flush()
            without = timed(steps)
            saved.append(timed(lambda: torch.save(state(), folder / "plain.pt")))
            call.append(timed(lambda: writer.submit(save, state())))
            loop.append(call[-1] + timed(steps) - without)
    return call, loop, saved


if __name__ == "__main__":
    tyro.cli(main)
