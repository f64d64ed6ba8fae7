"""One trial of a study in this process, without Ray: the local single-GPU way, also under a debugger."""

from __future__ import annotations

import dataclasses
import os
from functools import partial

import torch
from rich.console import Console

from emoreg.cli.summary import places
from emoreg.config import StudyConfig, TrialConfig
from emoreg.config.search_space import lengths
from emoreg.data import load
from emoreg.errors import Diverged, Interrupted
from emoreg.results.records import EpochRecord, Records, TrialResult, trial_record, utc_now
from emoreg.storage.working_copy import WorkingCopy
from emoreg.tracking import tensorboard
from emoreg.training.devices import device_name
from emoreg.training.events import Event, Reporters
from emoreg.training.experience import ExperienceStore
from emoreg.training.trial import EvaluatedSplit, run_trial
from emoreg.tuning.preflight import image_storage, store_uri
from emoreg.tuning.signals import stop_on_signals


def run_single(
    config: StudyConfig,
    copy: WorkingCopy,
    records: Records,
    evaluate_on: EvaluatedSplit,
    device: torch.device,
    console: Console,
) -> int:
    """Run ``config.trial`` from its checkpoint or the start, print its epochs, and record it as role ``trial``.

    It computes with the threads that it would have in the study: the numbers are the same, and so is the pace.

    The first SIGINT (Ctrl-C) or SIGTERM lets it finish its step and save; the second ends it at once.

    Returns:
        The exit code: 0, 1 for a trial that diverged, or 130 for one that was interrupted and has saved what it did.

    Raises:
        KeyboardInterrupt: at the second signal.
    """
    trial, started = config.trial, utc_now()
    folder, own = copy.folder, (f"trials/{config.trial.identity}", f"events/{config.trial.identity}")
    copy.pull(*own)
    torch.set_num_threads(max(1, int(config.resources.cpus_per_trial)))
    console.print(
        f"trial {trial.identity}: {trial.backbone}, control {trial.control}, seed {trial.seed}, on {device_name(device)}",
        highlight=False,
    )
    lines = EpochLines(trial, console)
    store = ExperienceStore(store_uri(config), user=config.name, keep=lengths(config), share=config.experience.share)
    store.sweep()
    signals: list[int] = []

    def ask(number: int) -> None:
        signals.append(number)
        os.write(2, b"emoreg: stopping as soon as it is saved; once more to leave at once\n")  # print is not for handlers

    result: TrialResult | None = None
    reason: str | None = None
    with (
        tensorboard.TensorBoardReporter(folder, trial, {}) as board,
        stop_on_signals(ask),
        store.running(config.name),
    ):
        try:
            result = run_trial(
                trial,
                Reporters(board, lines),
                load_images=partial(load, storage=image_storage(config.storage)),
                store=store,
                folder=folder / "trials" / trial.identity,
                device=device,
                evaluate_on=evaluate_on,
                checkpoint_seconds=config.resources.checkpoint_seconds,
                interrupted=lambda: bool(signals),
                on_checkpoint=partial(copy.push, *own),
            )
        except Interrupted:
            console.print("interrupted, and saved: run the same command again to go on from here", highlight=False)
            return 130
        except Diverged as diverged:
            reason = str(diverged)
        finally:
            for row in lines.epochs:
                records.add_epoch(row)
            records.write()
            copy.push("records", *own)
    earlier = records.trials.get(trial.identity)
    record = trial_record(
        trial,
        # A trial of the study that is looked at again stays what it was in the study.
        role="trial" if earlier is None else earlier.role,
        number=None if earlier is None else earlier.number,
        params={} if earlier is None else earlier.sampled,
        status="pruned" if result is None else "finished",
        reason=reason,
        result=result,
        epochs=lines.epochs,
        device=device_name(device),
        started=started,
    )
    if earlier is not None and record.test_accuracy is None:  # what was opened once is not forgotten
        record = dataclasses.replace(record, test_accuracy=earlier.test_accuracy)
    records.add_trial(record)
    tensorboard.finish(folder, record)
    copy.push("records", *own)
    if result is None:
        console.print(f"[red]pruned: {reason}[/red]")
        return 1
    console.print(f"validation accuracy {result.val_accuracy:.4f}, balance {result.measured_balance:.3f}", highlight=False)
    if result.test_accuracy is not None:
        console.print(
            f"test accuracy {result.test_accuracy:.4f} (the test split was opened, and the record says so)", highlight=False
        )
    for line in places(copy):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


class EpochLines:
    """Prints a line an epoch and keeps the rows, as ``epochs``. A ``Reporter``."""

    def __init__(self, trial: TrialConfig, console: Console) -> None:
        self._totals = {"pretraining": trial.pretraining.epochs, "regulation": trial.regulation.epochs}
        self._console = console
        self.epochs: list[EpochRecord] = []

    def report(self, event: Event) -> None:
        """Tell of an epoch; other events are nothing to a terminal."""
        if not isinstance(event, EpochRecord):
            return
        self.epochs.append(event)
        accuracy = event.val_accuracy if event.val_accuracy is not None else event.train_accuracy
        split = "validation" if event.val_accuracy is not None else "training"
        self._console.print(
            f"{event.stage:>11} {event.epoch:>3}/{self._totals[event.stage]}  loss {event.train_loss:.4f}"
            + ("" if accuracy is None else f"  {split} accuracy {accuracy:.4f}")
            + ("" if event.measured_balance is None else f"  balance {event.measured_balance:.3f}")
            + f"  {event.images_per_second:,.0f} images/s  {event.seconds:.1f} s",
            highlight=False,
            soft_wrap=True,
        )
