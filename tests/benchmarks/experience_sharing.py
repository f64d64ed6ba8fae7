"""What sharing pre-training saves, and what waiting for it costs: the same 32 trials with sharing off and on, then waiting.

    python -m tests.benchmarks.experience_sharing [--rounds 2] [--images 400] [--slots 8]

32 trials on 4 pre-training runs (subsets of the stimuli), 8 a run, of lengths 2, 4, 8 and 16 epochs in equal parts, two at a
time; each measured in a process of its own, alternating. With sharing off each trial pays for its whole pre-training, so that
N trials of mean P seconds of pre-training and F seconds of everything else take N (P + F); with k pre-training runs of P'
seconds to their full length they need at least k P' + N F. Then the share of the slots' time spent waiting, at 2 and at 8
slots, with as many pre-training runs as slots and with half as many.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tyro

import emoreg
from emoreg.formatting import counted
from emoreg.results.analysis import waiting_share
from emoreg.results.records import TrialRecord
from emoreg.results.study import StudyResults
from tests.benchmarks.common import machine, run_alone, seconds_between, spread

LENGTHS = (8, 2, 16, 4)
NUM_TRIALS = 32


def study(storage: str, *, shared_runs: int, slots: int, share: bool, images: int) -> emoreg.Study:
    """The study of 32 trials on so many pre-training runs."""
    balances = tuple(index / 10 for index in range(1, 1 + NUM_TRIALS // len(LENGTHS) // shared_runs))
    return emoreg.Study(
        "sharing",
        storage=storage,
        trial=emoreg.TrialConfig(
            backbone="test_resnet",
            stimuli=emoreg.ImageSetConfig(name="openmoji", num_images=images, validation_fraction=0.0),
            task=emoreg.ImageSetConfig(name="digits", num_images=images),
            pretraining=emoreg.PretrainingConfig(batch_size=32),
            regulation=emoreg.RegulationConfig(epochs=1, batch_size=32),
        ),
        search_space={
            "stimuli.split_seed": emoreg.Choice(tuple(range(shared_runs))),  # one after the other: so most would wait
            "pretraining.epochs": emoreg.Choice(LENGTHS),
            "regulation.balance": emoreg.Choice(balances),
        },
        num_trials=NUM_TRIALS,
        sampler=emoreg.SamplerConfig(name="grid"),
        controls=(),
        experience=emoreg.ExperienceConfig(share=share),
        resources=emoreg.ResourcesConfig(cpus_per_trial=2 / slots, max_concurrent=slots),
    )


def measure(**settings: int) -> StudyResults:
    """Run the study in a process of its own, on a storage of its own."""
    with tempfile.TemporaryDirectory() as storage:
        run_alone(f"from {__spec__.name} import study; study({storage!r}, **{settings!r}).run()")
        return emoreg.load_study(Path(storage) / "sharing").results


def paid(ran: StudyResults) -> float:
    """Seconds of pre-training."""
    return sum(trial.pretraining_seconds for trial in ran.trials)


def wall(ran: StudyResults) -> float:
    """Seconds from the start of the first trial to the end of the last."""
    return seconds_between(min(trial.started for trial in ran.trials), max(trial.ended for trial in ran.trials))


def other(trial: TrialRecord) -> float:
    """Seconds of a trial but for pre-training."""
    return seconds_between(trial.started, trial.ended) - trial.pretraining_seconds - trial.waiting_seconds


def print_savings(off: Sequence[StudyResults], on: Sequence[StudyResults], shared_runs: int) -> None:
    """Print what runs with sharing took, beside those without and beside the arithmetic optimum."""
    print("\n| | pre-training, s | epochs of it | wall time, s | everything else a trial, s |\n|---|---|---|---|---|")
    for name, of in (("off", off), ("on", on)):
        epochs = spread([sum(row.stage == "pretraining" for row in ran.epochs) for ran in of], 0)
        rest = statistics.mean(other(trial) for ran in of for trial in ran.trials)
        print(f"| sharing {name} | {spread([*map(paid, of)])} | {epochs} | {spread([*map(wall, of)])} | {rest:.2f} |")
    trials = [trial for ran in off for trial in ran.trials]
    pretraining = statistics.mean(trial.pretraining_seconds for trial in trials)
    rest = statistics.mean(map(other, trials))
    epoch = sum(trial.pretraining_seconds for trial in trials) / sum(trial.pretraining_epochs for trial in trials)
    all_runs = shared_runs * max(LENGTHS) * epoch
    best_paid = NUM_TRIALS * pretraining / all_runs
    best_wall = NUM_TRIALS * (pretraining + rest) / (all_runs + NUM_TRIALS * rest)
    print("\n| | off / on | arithmetic optimum | reached of it |\n|---|---|---|---|")
    for name, of, best in (("pre-training", paid, best_paid), ("wall time", wall, best_wall)):
        ratio = statistics.median(map(of, off)) / statistics.median(map(of, on))
        print(f"| {name} | {ratio:.2f} | {best:.2f} | {ratio / best:.2f} |")
    whole = all_runs / shared_runs
    print(f"\nP = {pretraining:.2f} s, F = {rest:.2f} s, P' = {whole:.2f} s, k = {shared_runs}, N = {NUM_TRIALS}")


def waiting_row(ran: StudyResults, slots: int, shared_runs: int) -> str:
    """The row of a study whose trials waited, with the share of its slots' time."""
    return f"| {slots} | {shared_runs} | {100 * waiting_share(ran.runs):.1f} % |"


def main(rounds: int = 2, images: int = 400, slots: tuple[int, ...] = (2, 8)) -> None:
    """Measure what sharing saves and costs, and print the tables.

    Args:
        rounds: runs of the study with sharing, and of that without.
        images: of the stimuli, and of the task.
        slots: numbers of trials at once, of 8 at most, to measure waiting at.
    """
    print(f"{machine()}, {counted(rounds, 'round')}, {images} images")
    off, on = [], []
    for _ in range(rounds):
        for share, runs in ((False, off), (True, on)):
            runs.append(measure(shared_runs=4, slots=2, share=share, images=images))
    print_savings(off, on, shared_runs=4)
    print("\n| slots | pre-training runs | waiting |\n|---|---|---|")
    for num_slots in slots:
        for shared_runs in (num_slots, num_slots // 2):
            ran = measure(shared_runs=shared_runs, slots=num_slots, share=True, images=images)
            print(waiting_row(ran, num_slots, shared_runs), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
