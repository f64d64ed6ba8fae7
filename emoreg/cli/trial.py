"""``emoreg trial``: one trial of a study in this process, without Ray, also under a debugger; its epochs as lines."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from functools import partial

import torch
from rich.console import Console

from emoreg.cli.summary import print_places
from emoreg.cli.terminal import new_table
from emoreg.config import StudyConfig, TrialConfig
from emoreg.config.resolved import ResolvedTrial
from emoreg.config.search_space import lengths
from emoreg.errors import Interrupted
from emoreg.formatting import percent
from emoreg.results.ledger import Ledger
from emoreg.results.outcome import EndReason, Outcome
from emoreg.results.records import EpochRecord, ProbeRecord, TrialRecord, utc_now
from emoreg.results.tables import Records
from emoreg.storage.checkpoint import CHECKPOINT
from emoreg.storage.experience import ExperienceStore
from emoreg.storage.files import Files
from emoreg.storage.housekeeping import running
from emoreg.storage.locks import Locks
from emoreg.tracking import tensorboard
from emoreg.training.context import EvaluatedSplit, TrialContext
from emoreg.training.devices import device_name
from emoreg.training.events import Confusion, Event, Reporter
from emoreg.training.stopwatch import Profile, Stopwatch
from emoreg.training.trial import run_trial
from emoreg.tuning.adapters import resolved_trial
from emoreg.tuning.auto_settings import study_precisions, written_compilations
from emoreg.tuning.coordinator import Coordinator, coordinate
from emoreg.tuning.images import image_loader
from emoreg.tuning.preflight import store_uri
from emoreg.tuning.signals import stop_on_signals


def run_one(
    config: StudyConfig,
    evaluate_on: EvaluatedSplit,
    device: torch.device,
    console: Console,
    *,
    command: str | None = None,
    profile: bool = False,
) -> int:
    """Run ``config.trial`` from its checkpoint or the start, print its epochs, and record it as role ``trial``.

    It computes with the threads that it would have in the study: the numbers are the same, and so is the pace. The first signal
    (Ctrl-C: see ``tuning.signals``) lets it finish its step and save; a second Ctrl-C or SIGTERM ends it at once.
    With ``profile`` it says where the time went.

    Returns:
        The exit code: 0, 1 for a trial that diverged, or 130 for one that was interrupted and has saved what it did.

    Raises:
        UserError: for a trial that cannot run.
        KeyboardInterrupt: at the second signal.
    """
    Files(config.storage).check()
    trial, started = resolved_trial(config.trial, image_loader(config.storage)), utc_now()
    places = (f"trials/{trial.identity}", f"events/{trial.identity}")
    with coordinate(config) as coordinator:
        copy = coordinator.copy
        copy.pull(*places)
        torch.set_num_threads(max(1, int(config.resources.cpus_per_trial)))
        console.print(
            f"trial {trial.identity}: {trial.config.backbone}, control {trial.config.control}, seed {trial.config.seed}, on "
            f"{device_name(device)}"
        )
        records = Records(copy.folder, coordinator.turn)
        earlier = records.trials.get(trial.identity)
        if earlier is not None and earlier.status == "finished" and not (copy.folder / places[0] / CHECKPOINT).exists():
            if evaluate_on == "validation":
                _print_recorded(earlier, console)
                return 0
            console.print("its network was not kept (resources.keep_networks): it is trained again to be tested")
        if evaluate_on == "test":
            _note_opening(config, trial, coordinator, started=started, command=command)
        context = dataclasses.replace(
            _context(config, trial, coordinator, records, device),
            evaluate_on=evaluate_on,
            stopwatch=Profile(device, copy.folder / places[1]) if profile else Stopwatch(),
        )
        lines = EpochLines(trial.config, console)
        board = tensorboard.TensorBoardReporter(copy.folder, trial, {})
        try:
            with board, running(context.store.files, config.name, is_alone=coordinator.is_alone):
                outcome = _trained(trial, context, (board, lines), console)
        except Interrupted:
            console.print("interrupted, and saved: run the same command again to go on from here")
            return 130
        finally:
            lines.add_to(records, trial.identity)
            records.write()
            copy.push("records", *places)
        record = _record(trial, outcome, earlier, device=device_name(device), started=started)
        records.add_trial(record)
        tensorboard.finish(copy.folder, record)
        copy.push("records", *places)
    return _print_outcome(outcome, copy.files.uri, console)


def _note_opening(
    config: StudyConfig, trial: ResolvedTrial, coordinator: Coordinator, *, started: str, command: str | None
) -> None:
    """Write into the ledger of the task's test split that this trial opens it."""
    task = image_loader(config.storage)(trial.config.task, image_size=trial.config.image_size)
    ledger = Ledger(config.storage, task.test_split, patience=coordinator.patience)
    ledger.add(study=config.name, opened=started, command=command, configurations=(trial.identity,), plan=None)


def _context(
    config: StudyConfig, trial: ResolvedTrial, coordinator: Coordinator, records: Records, device: torch.device
) -> TrialContext:
    """What the trial runs in: the study's experience, precision and compilation, and a folder in its working copy."""
    copy = coordinator.copy
    files = Files(str(copy.folder))
    store = ExperienceStore(
        store_uri(config),
        locks=shared_locks(config, coordinator),
        user=config.name,
        keep=lengths(config),
        share=config.experience.share,
    )
    store.sweep()
    return TrialContext(
        load_images=image_loader(config.storage),
        store=store,
        folder=copy.folder / "trials" / trial.identity,
        device=device,
        precisions=study_precisions(config, files, records.trials.values()),
        compiled={name: found.compiled for name, found in written_compilations(config, files).items()},
        checkpoint_seconds=config.resources.checkpoint_seconds,
        on_checkpoint=partial(copy.push, f"trials/{trial.identity}", f"events/{trial.identity}"),
    )


def shared_locks(config: StudyConfig, coordinator: Coordinator) -> Locks | None:
    """Those of pre-training runs where drivers of the study may be at work meanwhile; None for the store's own."""
    if coordinator.database is None:
        return None
    from emoreg.tuning.coordination import SharedRunLocks  # which imports Ray

    locks = SharedRunLocks(store=store_uri(config), is_cluster=False, database=coordinator.database)
    return locks.open(coordinator.patience)


def _trained(trial: ResolvedTrial, context: TrialContext, reporters: Sequence[Reporter], console: Console) -> Outcome:
    """What the trial comes to; a signal lets it save first. Where it is profiled, the profile is printed."""
    signals: list[int] = []

    def ask(number: int) -> None:
        signals.append(number)
        os.write(2, b"emoreg: stopping as soon as it is saved; once more to leave at once\n")  # print is not for handlers

    began = time.perf_counter()
    with stop_on_signals(ask):
        outcome = run_trial(trial, dataclasses.replace(context, should_stop=lambda: bool(signals)), *reporters)
    if isinstance(context.stopwatch, Profile):
        _print_profile(context.stopwatch, outcome, time.perf_counter() - began, console)
    return outcome


def _record(trial: ResolvedTrial, outcome: Outcome, earlier: TrialRecord | None, *, device: str, started: str) -> TrialRecord:
    """The row of a trial that ended. One of the study stays what it was there, and stays opened where its test was."""
    record = TrialRecord.of(trial, outcome, role="trial", number=None, params={}, device=device, started=started)
    if earlier is None:
        return record
    in_the_study = {name: getattr(earlier, name) for name in ("role", "number", "params", "search_of", "repeats")}
    tested = earlier.test_accuracy if record.test_accuracy is None else record.test_accuracy
    return dataclasses.replace(record, test_accuracy=tested, **in_the_study)


def _print_profile(profile: Profile, outcome: Outcome, seconds: float, console: Console) -> None:
    """Where the seconds of a trial went."""
    phases: dict[str, float] = {**profile.seconds, "waiting": outcome.pretraining.waiting_seconds}
    rest = seconds - sum(phases.values())
    table = new_table("Where the time went", "phase", "seconds", "share", right=("seconds", "share"))
    for name, taken in (*phases.items(), ("images, networks and the rest", rest), ("the whole trial", seconds)):
        table.add_row(name, f"{taken:.2f}", f"{taken / seconds:.1%}")
    console.print(table)
    for path in profile.traces:
        console.print(f"trace, for TensorBoard's profiler or https://ui.perfetto.dev: {path}")


def _print_outcome(outcome: Outcome, place: str, console: Console) -> int:
    """What a trial came to, and where that lies; the exit code."""
    if outcome.end == EndReason.DIVERGED:
        console.print(f"pruned: {outcome.message}", style="red")
        return 1
    if outcome.val_accuracy is not None:
        console.print(f"validation accuracy {percent(outcome.val_accuracy)}, balance {outcome.measured_balance:.3f}")
    if outcome.test_accuracy is not None:
        console.print(f"test accuracy {percent(outcome.test_accuracy)} (the test set was opened, and the record says so)")
    print_places(place, console)
    return 0


def _print_recorded(record: TrialRecord, console: Console) -> None:
    """What a finished trial came to whose network is gone."""
    accuracy = "" if record.val_accuracy is None else f" with validation accuracy {percent(record.val_accuracy)}"
    console.print(
        f"it finished on {record.ended[:10]}{accuracy}, and its network was not kept "
        "(resources.keep_networks): nothing is left to run, `--replay` trains it again from its start"
    )


class EpochLines:
    """Prints a line an epoch, and keeps what is recorded. A ``Reporter``."""

    def __init__(self, trial: TrialConfig, console: Console) -> None:
        self._totals = {"pretraining": trial.pretraining.total_epochs, "regulation": trial.regulation.epochs}
        self._console = console
        self.epochs: list[EpochRecord] = []
        self.probes: list[ProbeRecord] = []
        self.confusions: list[Confusion] = []

    def add_to(self, records: Records, identity: str) -> None:
        """Add what was kept to the records, as that of the trial of this identity."""
        for row in self.epochs:
            records.add_epoch(row)
        for probe in self.probes:
            records.add_probe(probe)
        for confusion in self.confusions:
            for evaluation in confusion.rows(identity):
                records.add_evaluation(evaluation)

    def report(self, event: Event) -> None:
        """Tell of an epoch; other events are nothing to a terminal."""
        if isinstance(event, ProbeRecord):
            self.probes.append(event)
        if isinstance(event, Confusion):
            self.confusions.append(event)
        if not isinstance(event, EpochRecord):
            return
        self.epochs.append(event)
        accuracy = event.val_accuracy if event.val_accuracy is not None else event.train_accuracy
        split = "validation" if event.val_accuracy is not None else "training"
        self._console.print(
            f"{event.stage:>11} {event.epoch:>3}/{self._totals[event.stage]}  loss {event.train_loss:.4f}"
            + ("" if accuracy is None else f"  {split} accuracy {percent(accuracy)}")
            + ("" if event.measured_balance is None else f"  balance {event.measured_balance:.3f}")
            + f"  {event.images_per_second:,.0f} images/s  {event.seconds:.1f} s"
        )
