"""A whole study: the same trials in emoreg, sharing pre-training or not, and written plainly with Ray Tune; alternating.

    python -m tests.benchmarks.study [--data FOLDER] [--num-trials 32] [--rounds 3]

The plain side is `scripts/plain_study.py`: Tune with OptunaSearch, torchvision's transforms, a DataLoader, float32, a process
for each trial. Both search the balance and 2, 4, 8 or 16 epochs of pre-training of test_resnet at 32 px, on 250 stimuli, 500 +
500 images of a task and 3 epochs; a trial has one core. emoreg's side has no controls, and all else by its defaults. Timed is
the whole command, from outside: imports, Ray, images that emoreg prepares anew each time, the last trial's records.

FOLDER holds FER2013 and CIFAR-10 in Parquet, as `emoreg data prepare` takes them; without it both sides read OpenMoji's faces
and handwritten digits, written to Parquet beforehand. A round of 32 trials took 20 minutes on two idle cores, most of them the
plain side's; fewer trials show less of what sharing saves.

The ratio of the last line is the lowest of both ratios over their goals: 1 reaches both.
"""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from PIL import Image

import emoreg
from emoreg.data import load
from emoreg.formatting import counted
from tests.benchmarks.common import machine, spread

GOALS = {"sharing off": 2.5, "sharing on": 4.0}
"""Seconds of the plain side by those of emoreg's."""
PLAIN_STUDY = Path(__file__).parent / "scripts" / "plain_study.py"
_NUM_VALIDATION = 500
_SIDE = 32
_STUDY = """
import emoreg

augmentation = emoreg.AugmentationConfig(flip=True)
study = emoreg.Study(
    "ours",
    trial=emoreg.TrialConfig(
        backbone="test_resnet",
        image_size=32,
        stimuli=emoreg.ImageSetConfig(name={stimuli.name!r}, path={stimuli.path!r}, num_images=250, validation_fraction=0.0),
        task=emoreg.ImageSetConfig(name={task.name!r}, path={task.path!r}, num_images=500, validation_fraction={fraction}),
        pretraining=emoreg.PretrainingConfig(batch_size=64, augmentation=augmentation),
        regulation=emoreg.RegulationConfig(epochs=3, batch_size=64, augmentation=augmentation),
    ),
    search_space={{"regulation.balance": emoreg.Float(0.05, 0.95), "pretraining.epochs": emoreg.Choice((2, 4, 8, 16))}},
    num_trials=20,
    controls=(),
)
"""


@dataclass(frozen=True)
class Images:
    """An image set: what emoreg reads it by, and the files of its training images, of which the plain side takes the first."""

    name: str
    path: str
    files: Sequence[str]

    @property
    def num_train(self) -> int:
        """Images of its training split."""
        return sum(pq.read_metadata(file).num_rows for file in self.files)


@dataclass(frozen=True)
class Ran:
    """What a side took, and the best validation accuracy that it came to."""

    seconds: float
    best: float


def main(data: str | None = None, num_trials: int = 32, rounds: int = 3) -> None:
    """Measure all sides, and print the table.

    Args:
        data: folder of FER2013 and CIFAR-10 in Parquet; None for the images that come with emoreg.
        num_trials: of each side.
        rounds: of all sides, alternating.
    """
    sides: dict[str, list[Ran]] = {"plain": [], **{side: [] for side in GOALS}}
    with tempfile.TemporaryDirectory() as folder:
        stimuli, task = embedded(Path(folder)) if data is None else affective(Path(data).resolve())
        study = Path(folder) / "ours.py"
        study.write_text(study_text(stimuli, task))
        for _ in range(rounds):
            sides["plain"].append(plain(stimuli, task, num_trials))
            for side in GOALS:
                sides[side].append(ours(study, num_trials, share=side == "sharing on"))
                print(f"{side}: {sides[side][-1].seconds:.0f} s, plain: {sides['plain'][-1].seconds:.0f} s", file=sys.stderr)
    print(f"{machine()}, {counted(num_trials, 'trial')} a side, {counted(rounds, 'round')}\n")
    print("| side | seconds | plain / it | best validation accuracy, % |\n|---|---|---|---|")
    plain_seconds = statistics.median(ran.seconds for ran in sides["plain"])
    ratios = {side: plain_seconds / statistics.median(ran.seconds for ran in runs) for side, runs in sides.items()}
    for side, runs in sides.items():
        seconds, best = [ran.seconds for ran in runs], [100 * ran.best for ran in runs]
        print(f"| {side} | {spread(seconds, 0)} | {ratios[side]:.2f} | {spread(best)} |")
    print()
    for side, goal in GOALS.items():
        print(f"study ({side}) ratio={ratios[side]:.2f} goal={goal:g}")
    print(f"study ratio={min(ratios[side] / goal for side, goal in GOALS.items()):.2f} goal=1")


def plain(stimuli: Images, task: Images, num_trials: int) -> Ran:
    """Run the plain side."""
    begun = time.perf_counter()
    output = _output([sys.executable, str(PLAIN_STUDY), stimuli.files[0], task.files[0], str(num_trials)])
    return Ran(time.perf_counter() - begun, float(output.split()[-1]))


def ours(study: Path, num_trials: int, *, share: bool) -> Ran:
    """Run emoreg's side, in a storage of its own."""
    with tempfile.TemporaryDirectory() as storage:
        command = [sys.executable, "-m", "emoreg", "run", str(study), "--storage", storage, "--num-trials", str(num_trials)]
        begun = time.perf_counter()
        _output(command if share else [*command, "--experience.no-share"])
        seconds = time.perf_counter() - begun
        ran = emoreg.load_study(Path(storage) / "ours")
        assert len([trial for trial in ran.trials if trial.status == "finished"]) == num_trials
        return Ran(seconds, ran.best["test_resnet"].val_accuracy)


def study_text(stimuli: Images, task: Images) -> str:
    """The study file of emoreg's side."""
    return _STUDY.format(stimuli=stimuli, task=task, fraction=round(_NUM_VALIDATION / task.num_train, 6))


def affective(data: Path) -> tuple[Images, Images]:
    """FER2013 and CIFAR-10 in a folder."""
    stimuli, task = ([str(file) for file in sorted(data.glob(f"{name}*train*.parquet"))] for name in ("fer2013", "cifar10"))
    return Images("fer2013", str(data), stimuli), Images("cifar10", str(data), task)


def embedded(folder: Path) -> tuple[Images, Images]:
    """OpenMoji's faces and handwritten digits, written to Parquet."""
    return _written(folder, "openmoji"), _written(folder, "digits")


def _written(folder: Path, name: str) -> Images:
    image_set = load(emoreg.ImageSetConfig(name=name), image_size=_SIDE, storage=folder / "prepared")
    home = folder / name
    home.mkdir()
    for word, split in (("train", image_set.train), ("test", image_set.test)):
        table = pa.table({"image": [_png(image) for image in split.images], "label": split.targets})
        pq.write_table(table, home / f"{word}.parquet")
    return Images("parquet", str(home), [str(home / "train.parquet")])


def _png(pixels: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


if __name__ == "__main__":
    tyro.cli(main)
