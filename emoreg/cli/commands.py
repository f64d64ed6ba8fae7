"""The commands beside ``emoreg run``, on studies, trials, image sets and this machine."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from emoreg.cli.options import WRITTEN, ConfirmationOptions, Debug, Device, StudyCommand, Switch, WrittenCommand, reading
from emoreg.cli.terminal import terminal
from emoreg.config import STORAGE, ImageSetConfig, StudyConfig, TrialConfig, require
from emoreg.config.by_hand import parse_values
from emoreg.config.image_sets import Fit
from emoreg.errors import ConfigError, Interrupted, StudyAborted
from emoreg.formatting import percent
from emoreg.study import Study, load_study
from emoreg.study_file import find_study, open_study


@dataclass(frozen=True, kw_only=True)
class Confirm(ConfirmationOptions, StudyCommand):
    """Confirm the best of a study's search, on fresh seeds and on the test split.

    The best configurations of each backbone are fixed, on validation.

    They and every control run on the same seeds, and open the test split once.

    Interrupted, it goes on like a study.
    """

    dry_run: Switch = False
    """Only say what would run, and what it would cost."""
    address: str | None = None
    """A Ray cluster's address, or `auto` for the one that this machine belongs to. None: this machine."""

    def __call__(self) -> int:
        """The exit code."""
        from emoreg.cli.summary import exit_code, print_confirmation, print_confirmation_plan
        from emoreg.tuning.preflight import check_home

        check_home(self.address)  # before Ray is imported
        from emoreg.tuning.confirm import check_confirmation, plan_confirmation

        study, console = Study.from_config(self.config), terminal()
        plan = plan_confirmation(self.config, self.asked, address=self.address)
        print_confirmation_plan(study.name, plan, console)
        for entry in check_confirmation(plan):
            console.print(f"The verdict will be exploratory: the test set was opened by {entry}.", style="yellow")
        if self.dry_run:
            return 0
        ended: Interrupted | StudyAborted | None = None
        try:
            study.confirm(**dataclasses.asdict(self.asked), address=self.address, command=self.command)
        except (Interrupted, StudyAborted) as error:
            ended = error
        results = Study.from_config(plan.config).results
        print_confirmation(results, console)
        return exit_code(results, ended, self.command, console)


@dataclass(frozen=True, kw_only=True)
class Show(StudyCommand):
    """Show a study before it runs.

    Its configuration, search space, number of trials, and an estimate of its cost.

    A few training steps are measured; image sets that are new are prepared.
    """

    def __call__(self) -> int:
        """The exit code."""
        from emoreg.cli.summary import print_plan

        print_plan(self.study, self.config, terminal())
        return 0


@dataclass(frozen=True, kw_only=True)
class Trial(StudyCommand):
    """Run one trial of a study in this process, without Ray.

    The trial is the study's, as configured; nothing is searched.

    It goes on from its last checkpoint, and works under a debugger.
    """

    evaluate: Literal["validation", "test"] = "validation"
    """`test` opens the test split once at the end, and is recorded."""
    device: Device = "auto"
    """Where to compute; `auto` takes the GPU where there is one."""
    replay: str | None = None
    """Identity of a recorded trial, of the study or its confirmation: run it again, and compare."""
    profile: Switch = False
    """Say where its time went, and write a trace of its first steps for TensorBoard or Perfetto."""

    def settled(self) -> tuple[StudyConfig, list[str]]:
        """The study as configured, of which nothing is searched."""
        return self.checked(), []

    def __call__(self) -> int:
        """The exit code."""
        from emoreg.training.devices import pick_device

        device, console = pick_device(self.device), terminal()
        if self.replay is None:
            from emoreg.cli.trial import run_one

            return run_one(self.config, self.evaluate, device, console, command=self.command, profile=self.profile)
        from emoreg.cli.replay import replay

        require(
            self.evaluate == "validation" and not self.overridden and not self.profile,
            "--replay runs a trial as it was recorded, so it goes without them",
            shlex.join(self.typed),
            "drop --evaluate, --profile and --trial options",
        )
        return replay(self.config, self.replay, device, console)


@dataclass(frozen=True, kw_only=True)
class Status(WrittenCommand):
    """Show how a study stands: trials done and running, the best so far, the time left."""

    address: str | None = None
    """The URL of a cluster's dashboard: how the newest job of the study stands there."""
    json: Switch = False
    """Print it for programs."""
    verify: Switch = False
    """Hold every stored file of the study against its digest instead, and say what is whole; exit code 1 where one is not."""

    def __call__(self) -> int:
        """The exit code."""
        if self.address is not None:
            from emoreg.cli.cluster import print_job_status

            return print_job_status(self.study, self.address, as_json=self.json)
        if self.verify:
            from emoreg.cli.look import print_verified

            with reading():
                return print_verified(find_study(self.study, self.storage), terminal())
        from emoreg.cli.look import print_status
        from emoreg.results.status import read_status

        with reading():
            status = read_status(find_study(self.study, self.storage))
        if self.json:
            print(json.dumps(dataclasses.asdict(status), indent=2))
        else:
            print_status(status, terminal())
        return 0


@dataclass(frozen=True, kw_only=True)
class Export(WrittenCommand):
    """Write a trained network, its configuration and its model card to a folder, from which `emoreg.load_network` loads it."""

    to: str
    """Folder or URI to write to. What was exported there before is replaced."""
    trial: str | None = None
    """Identity of a finished trial of the study or its confirmation, whose network was kept."""
    best: Switch = False
    """The best trial of the search: what is exported unless something else is asked for."""
    confirmed: Switch = False
    """The confirmed configuration that was best on validation, on the first of its fresh seeds."""
    onnx: Switch = False
    """Write network.onnx too, in float32, for other runtimes."""

    def __call__(self) -> int:
        """The exit code."""
        asked = {"best": self.best, "confirmed": self.confirmed, self.trial or "": self.trial is not None}
        given = [trial for trial, is_given in asked.items() if is_given] or ["best"]
        require(len(given) == 1, "one network is exported", given, "give one of --trial, --best and --confirmed")
        with reading("Check the storage and the folder to write to"):
            study = load_study(find_study(self.study, self.storage))
            record = study.export(self.to, trial=given[0], onnx=self.onnx)
        accuracy = "" if record.val_accuracy is None else f", validation accuracy {percent(record.val_accuracy)}"
        console = terminal()
        console.print(f"exported: trial {record.identity}, {record.backbone}, seed {record.seed}{accuracy}")
        console.print(f"to:       {self.to}")
        console.print(f"use:      emoreg.load_network({self.to!r})")
        return 0


@dataclass(frozen=True, kw_only=True)
class Enqueue(WrittenCommand):
    """Put a trial first in the search of a study, whether it runs now or later.

    The values are held against the search space; the sampler proposes those that are left out.
    """

    values: Annotated[
        Positional[tuple[str, ...]], arg(metavar="PATH=VALUE [PATH=VALUE ...]", help="Values, as regulation.balance=0.3.")
    ]

    def __call__(self) -> int:
        """The exit code."""
        with reading():
            study = open_study(self.study, self.storage).enqueue(parse_values(self.values))
        print(f"study {study.name!r}: enqueued {', '.join(self.values)}; the next trial of its search has these values")
        return 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a study's report, or that of several side by side: one HTML file that needs no server and no network."""

    studies: Annotated[Positional[tuple[str, ...]], arg(metavar="STUDY [STUDY ...]", help=WRITTEN)]
    storage: str | None = None
    """Folder or URI that holds them, where it is not `runs` or what the study's file says."""
    output: str | None = None
    """Folder to write to. None: `report` in the study's folder, of several studies `A+B.report` beside that of the first."""
    price_per_hour: float | None = None
    """What an hour of the device costs, for the account of costs."""
    images: bool = True
    """Every figure as PNG and SVG too, which takes a Chrome or Chromium; `--no-images` leaves them out."""
    debug: Debug = False

    def __call__(self) -> int:
        """The exit code."""
        from emoreg.cli.look import print_report

        require(len(self.studies) > 0, "emoreg report needs a STUDY", self.studies, "name one, e.g. `emoreg report quickstart`")
        require(
            self.price_per_hour is None or 0 <= self.price_per_hour < math.inf,
            "--price-per-hour must be 0 or more",
            self.price_per_hour,
            "give what an hour of the device costs",
        )
        with reading():
            places = [find_study(study, self.storage) for study in self.studies]
            print_report(places, self.output, price_per_hour=self.price_per_hour, images=self.images)
        return 0


@dataclass(frozen=True, kw_only=True)
class Experience:
    """List or prune the experience store.

    Pruning never removes what a running study needs.
    """

    action: Annotated[
        Positional[Literal["list", "prune"]],
        arg(help="list: what the store holds, who used it, what it saved. prune: remove the least recently used."),
    ]
    storage: str = STORAGE
    """Folder of the studies, whose `experience` is the store."""
    uri: str | None = None
    """Folder or URI (file://, s3://, gs://) of the store, where it is another one."""
    budget_gib: float | None = None
    """What prune may leave."""
    dry_run: Switch = False
    """Only say what prune would remove."""
    debug: Debug = False

    def __call__(self) -> int:
        """The exit code."""
        from emoreg.cli.inventory import print_inventory, print_pruning
        from emoreg.storage.working_copy import join

        uri, console = self.uri or join(self.storage, "experience"), terminal()
        if self.action == "list":
            print_inventory(uri, console)
            return 0
        if self.budget_gib is None or not 0 <= self.budget_gib < math.inf:
            raise ConfigError(
                "Give --budget-gib, e.g. --budget-gib 20: emoreg experience prune needs what it may leave, from 0 upwards, but "
                f"it is {self.budget_gib}"
            )
        print_pruning(uri, self.budget_gib, console, dry_run=self.dry_run)
        return 0


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Examine this machine, or a Ray cluster: a verdict and, where something lacks, a cure on each line."""

    storage: str = STORAGE
    """Folder, or URI (file://, s3://, gs://), that studies will write to."""
    address: str | None = None
    """HOST:PORT of a Ray cluster, or `auto` for the one that this machine belongs to. None: this machine."""
    debug: Debug = False

    def __call__(self) -> int:
        """The exit code."""
        from emoreg.cli.cluster import print_findings
        from emoreg.cluster.doctor import examine, examine_cluster

        findings = examine(self.storage) if self.address is None else examine_cluster(self.address, self.storage)
        return print_findings(findings)


@dataclass(frozen=True, kw_only=True)
class Data:
    """List, prepare or look at image sets."""

    action: Annotated[
        Positional[Literal["list", "prepare", "show"]],
        arg(help="list: the readers. prepare: decode NAME once. show: write a contact sheet of NAME."),
    ]
    name: Annotated[
        Positional[str | None],
        arg(metavar="[NAME]", help="The image set's reader; or hub:OWNER/NAME, a set of the Hugging Face hub."),
    ] = None
    path: str | None = None
    """File or folder of the images, for readers that need one."""
    target: str | None = None
    """What is learned, where the reader offers several; the column of the labels, in Parquet."""
    image_column: str | None = None
    """Column of the images, in Parquet, where it is not plain which."""
    fit: Fit = "squeeze"
    """Pictures that are not square: all of them, out of proportion, or their middle."""
    group: str | None = None
    """What belongs together, one person's images say: a column, in Parquet; levels of folders, as person/class."""
    image_size: int = TrialConfig().image_size
    """Side in pixels."""
    storage: str = STORAGE
    """Folder that holds prepared image sets."""
    output: str | None = None
    """The contact sheet's file; NAME.png where left out."""
    debug: Debug = False

    def __call__(self) -> int:
        """The exit code."""
        from emoreg.cli.image_sets import print_image_set, print_readers

        console = terminal()
        if self.action == "list":
            print_readers(console)
            return 0
        if self.name is None:
            raise ConfigError(f"Name an image set: emoreg data {self.action} needs the NAME of one; see `emoreg data list`")
        name, path = self.name, self.path
        if name.startswith("hub:"):
            name, path = "parquet", f"hub://{name.removeprefix('hub:').removeprefix('//')}"
        config = ImageSetConfig(
            name=name, path=path, target=self.target, image_column=self.image_column, fit=self.fit, group=self.group
        )
        sheet = Path(self.output or f"{name}.png") if self.action == "show" else None
        print_image_set(config, self.image_size, self.storage, sheet, console)
        return 0
