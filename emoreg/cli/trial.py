"""``emoreg trial``: one trial of a study in this process, without Ray, also under a debugger; its epochs as lines."""

from __future__ import annotations

import dataclasses
import os
from functools import partial

import torch
from rich.console import Console

from emoreg.cli.summary import print_places
from emoreg.config import StudyConfig, TrialConfig
from emoreg.config.search_space import lengths
from emoreg.errors import Interrupted
from emoreg.results.ledger import Ledger
from emoreg.results.outcome import EndReason
from emoreg.results.records import EpochRecord, ProbeRecord, TrialRecord, utc_now
from emoreg.results.tables import Records
from emoreg.storage.checkpoint import CHECKPOINT
from emoreg.storage.experience import ExperienceStore
from emoreg.tracking import tensorboard
from emoreg.training.context import EvaluatedSplit, TrialContext
from emoreg.training.devices import device_name
from emoreg.training.events import Confusion, Event
from emoreg.training.trial import run_trial
from emoreg.tuning.adapters import image_loader, resolved_trial
from emoreg.tuning.coordinator import coordinate
from emoreg.tuning.preflight import check_storage, store_uri
from emoreg.tuning.signals import stop_on_signals


def run_one(
    config: StudyConfig,
    evaluate_on: EvaluatedSplit,
    device: torch.device,
    console: Console,
    *,
    command: str | None = None,
) -> int:
    """Run ``config.trial`` from its checkpoint or the start, print its epochs, and record it as role ``trial``.

    It computes with the threads that it would have in the study: the numbers are the same, and so is the pace. The first signal
    (Ctrl-C: see ``tuning.signals``) lets it finish its step and save; a second Ctrl-C or SIGTERM ends it at once.

    Returns:
        The exit code: 0, 1 for a trial that diverged, or 130 for one that was interrupted and has saved what it did.

    Raises:
        UserError: for a trial that cannot run.
        KeyboardInterrupt: at the second signal.
    """
    check_storage(config.storage)
    load_images, started, signals = image_loader(config.storage), utc_now(), list[int]()
    trial = resolved_trial(config.trial, load_images)
    own = (f"trials/{trial.identity}", f"events/{trial.identity}")

    def ask(number: int) -> None:
        signals.append(number)
        os.write(2, b"emoreg: stopping as soon as it is saved; once more to leave at once\n")  # print is not for handlers

    with coordinate(config) as coordinator:
        copy = coordinator.copy
        records, folder = Records(copy.folder, coordinator.turn), copy.folder / "trials" / trial.identity
        copy.pull(*own)
        torch.set_num_threads(max(1, int(config.resources.cpus_per_trial)))
        console.print(
            f"trial {trial.identity}: {trial.config.backbone}, control {trial.config.control}, seed {trial.config.seed}, on "
            f"{device_name(device)}"
        )
        earlier = records.trials.get(trial.identity)
        if earlier is not None and earlier.status == "finished" and not (folder / CHECKPOINT).exists():
            if evaluate_on == "validation":
                _print_recorded(earlier, console)
                return 0
            console.print("its network was not kept (resources.keep_networks): it is trained again to be tested")
        lines = EpochLines(trial.config, console)
        store = ExperienceStore(store_uri(config), user=config.name, keep=lengths(config), share=config.experience.share)
        store.sweep()
        context = TrialContext(
            load_images=load_images,
            store=store,
            folder=folder,
            device=device,
            evaluate_on=evaluate_on,
            checkpoint_seconds=config.resources.checkpoint_seconds,
            should_stop=lambda: bool(signals),
            on_checkpoint=partial(copy.push, *own),
        )
        if evaluate_on == "test":
            task = load_images(trial.config.task, image_size=trial.config.image_size)
            Ledger(config.storage, task.test_split, patience=coordinator.patience).add(
                study=config.name, opened=started, command=command, configurations=(trial.identity,), plan=None
            )
        try:
            with (
                tensorboard.TensorBoardReporter(copy.folder, trial, {}) as board,
                stop_on_signals(ask),
                store.running(config.name, is_alone=coordinator.is_alone),
            ):
                outcome = run_trial(trial, context, board, lines)
        except Interrupted:
            console.print("interrupted, and saved: run the same command again to go on from here")
            return 130
        finally:
            for row in lines.epochs:
                records.add_epoch(row)
            for probe in lines.probes:
                records.add_probe(probe)
            for confusion in lines.confusions:
                for evaluation in confusion.rows(trial.identity):
                    records.add_evaluation(evaluation)
            records.write()
            copy.push("records", *own)
        record = TrialRecord.of(
            trial,
            outcome,
            role="trial" if earlier is None else earlier.role,  # a trial of the study stays what it was in the study
            number=None if earlier is None else earlier.number,
            params={} if earlier is None else earlier.sampled,
            device=device_name(device),
            started=started,
        )
        if earlier is not None and record.test_accuracy is None:  # that it was opened once is not forgotten
            record = dataclasses.replace(record, test_accuracy=earlier.test_accuracy)
        records.add_trial(record)
        tensorboard.finish(copy.folder, record)
        copy.push("records", *own)
    if outcome.end == EndReason.DIVERGED:
        console.print(f"pruned: {outcome.message}", style="red")
        return 1
    console.print(f"validation accuracy {outcome.val_accuracy:.4f}, balance {outcome.measured_balance:.3f}")
    if outcome.test_accuracy is not None:
        console.print(f"test accuracy {outcome.test_accuracy:.4f} (the test set was opened, and the record says so)")
    print_places(copy.files.uri, console)
    return 0


def _print_recorded(record: TrialRecord, console: Console) -> None:
    """What a finished trial came to whose network is gone."""
    console.print(
        f"it finished on {record.ended[:10]} with validation accuracy {record.val_accuracy:.4f}, and its network was not kept "
        "(resources.keep_networks): nothing is left to run, `--replay` trains it again from its start"
    )


class EpochLines:
    """Prints a line an epoch, and keeps what is recorded. A ``Reporter``."""

    def __init__(self, trial: TrialConfig, console: Console) -> None:
        self._totals = {"pretraining": trial.pretraining.epochs, "regulation": trial.regulation.epochs}
        self._console = console
        self.epochs: list[EpochRecord] = []
        self.probes: list[ProbeRecord] = []
        self.confusions: list[Confusion] = []

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
            + ("" if accuracy is None else f"  {split} accuracy {accuracy:.4f}")
            + ("" if event.measured_balance is None else f"  balance {event.measured_balance:.3f}")
            + f"  {event.images_per_second:,.0f} images/s  {event.seconds:.1f} s"
        )
