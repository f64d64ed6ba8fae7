"""Faults on a real Ray cluster of several nodes on this machine: each study ends as if nothing had happened, and soon goes on.

How long it took is recorded with each test as ``recovery``: ``tests/benchmarks/recovery.py`` makes the table.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import Left, Tally
from tests.helpers.waiting import PATIENCE
from tests.integration.cluster import RAY, Cluster, cluster_of, lose, signal_machine, wait_for_node
from tests.integration.fault_study import NUM_TRIALS
from tests.integration.gate import Gate

pytestmark = [pytest.mark.slow, pytest.mark.soak]

STUDY = Path(__file__).with_name("fault_study.py")
MOST_SECONDS = 30.0
OUTAGE_SECONDS = 20.0
Event = dict[str, Any]
Node = subprocess.Popen[bytes]


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How a study got over a fault.

    Attributes:
        fault: what happened.
        detected: seconds from the fault until Ray said so, by the error of a trial or by the state of a node,
            whichever came first: what no study can make shorter; 0 where Ray has no part.
        declared: seconds from the fault until Ray showed the node dead; None where none died.
        recovered: seconds from the fault until everything that it disturbed had reported an epoch that it had not before.
        trials: that are recorded.
    """

    fault: str
    detected: float
    declared: float | None = None
    recovered: float
    trials: int

    @property
    def beyond(self) -> float:
        """Seconds to recover, Ray's detection not counted."""
        return self.recovered - self.detected


class WatchedStudy:
    """The study of faults on a cluster, with its driver's diary."""

    def __init__(self, cluster: Cluster, folder: Path, storage: str, nodes: dict[str, Node], *overrides: str) -> None:
        self.cluster = cluster
        self.storage = storage
        self._folder = folder
        self._nodes = nodes
        self._overrides = overrides
        self.start()

    def start(self) -> None:
        module = (sys.executable, "-m", "tests.integration.watched_run", str(self._folder / "diary"), str(STUDY))
        where = ("--storage", self.storage, "--address", self.cluster.address)
        self.process = self.cluster.start(*module, *where, *self._overrides)

    def events(self, what: str, **wanted: object) -> list[Event]:
        """What the driver heard, in order."""
        path = self._folder / "diary"
        whole = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
        events = [event for event in map(json.loads, whole) if event["what"] == what]
        return [event for event in events if wanted.items() <= event.items()]

    def first(self, what: str, *, after: float = 0.0, **wanted: object) -> Event | None:
        """The first such event after a moment."""
        return next((event for event in self.events(what, **wanted) if event["time"] > after), None)

    def wait_for(self, what: str, *, after: float = 0.0, seconds: float = PATIENCE, **wanted: object) -> Event:
        deadline = time.monotonic() + seconds
        while (event := self.first(what, after=after, **wanted)) is None:
            assert self.process.poll() is None, "the study ended before the moment came: " + self.process.communicate()[0]
            assert time.monotonic() < deadline, f"the moment never came: {what}, {wanted}"
            time.sleep(0.02)  # between two looks at the diary
        return event

    def machine(self, node_id: str) -> Node:
        """The processes of a node of Ray's."""
        (name,) = {event["name"] for event in self.events("node", id=node_id)}
        return self._nodes[name]

    def place(self, identity: str) -> str:
        """The node that a trial began on last."""
        node: str = self.events("started", identity=identity)[-1]["node"]
        return node

    def running(self, node_id: str | None = None) -> set[str]:
        """Trials that have begun, on a node or anywhere, and have not ended."""
        began = {event["identity"]: event["node"] for event in self.events("started")}
        ended = {event["identity"] for event in self.events("ended")}
        return {identity for identity, node in began.items() if identity not in ended and node_id in (None, node)}

    def recovered(self, identities: set[str], fault: float) -> float:
        """Seconds from a moment until the last of these trials had reported an epoch that it had not before, or its end."""
        before = {
            (event["identity"], event["stage"], event["epoch"]) for event in self.events("epoch") if event["time"] < fault
        }
        firsts: dict[str, float] = {}
        for event in self.events("epoch"):
            if (event["identity"], event["stage"], event["epoch"]) not in before:
                firsts.setdefault(event["identity"], event["time"])
        for event in self.events("ended"):  # of a trial that had reported its last epoch before
            firsts.setdefault(event["identity"], event["time"])
        return max(firsts[identity] for identity in identities) - fault

    def finish(self) -> str:
        output, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, output
        return output


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """A cluster whose head runs drivers and no trials."""
    with cluster_of("--num-cpus=0") as cluster:
        yield cluster


class Field:
    """Where a fault happens: a cluster with nodes of this test alone, and the study on it."""

    def __init__(self, head: Cluster, folder: Path) -> None:
        self.head = head
        self.folder = folder
        self._nodes: dict[str, Node] = {}
        self._studies: list[WatchedStudy] = []

    def add_node(self, cpus: int = 2) -> Node:
        """A node that has joined."""
        name = f"{self.folder.name}-{len(self._nodes)}"
        log = self.folder / f"{name}.log"
        node = self.head.add_node(f"--address={self.head.address}", f"--node-name={name}", f"--num-cpus={cpus}", log=log)
        self._nodes[name] = node
        wait_for_node(node, log)
        return node

    def run(self, *overrides: str, storage: str | None = None) -> WatchedStudy:
        """The study, begun."""
        study = WatchedStudy(self.head, self.folder, storage or str(self.folder), self._nodes, *overrides)
        self._studies.append(study)
        return study

    def clear(self) -> None:
        """End what the test has left."""
        for study in self._studies:
            if study.process.poll() is None:
                study.process.kill()
                study.process.communicate()
        for node in self._nodes.values():
            if node.poll() is None:
                lose(node)


@pytest.fixture
def field(head: Cluster, tmp_path: Path) -> Iterator[Field]:
    field = Field(head, tmp_path)
    yield field
    field.clear()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of the same study, run on this machine alone."""
    storage = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run(
        [sys.executable, "-m", "emoreg", "run", str(STUDY), "--storage", str(storage)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return storage


class Note:
    """Checks that a study ended as if undisturbed, and keeps how fast it recovered."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def __call__(
        self,
        fault: str,
        study: WatchedStudy,
        moment: float,
        *,
        disturbed: set[str],
        undisturbed: Path,
        dead_node: str | None = None,
        database: str | None = None,
        heirs: set[str] | None = None,
    ) -> float:
        """The seconds to recover beyond Ray's detection: until the disturbed trials go on, or others in their place."""
        detected, declared = 0.0, None
        if dead_node is not None:
            dead = study.first("node", id=dead_node, is_alive=False)
            assert dead is not None, "the node was not seen to die"
            declared = dead["time"] - moment
            heard = [event["time"] - moment for event in study.events("broken") if event["identity"] in disturbed]
            detected = min(declared, max(heard, default=declared))  # Tune tells nobody of trials that drained nodes take along
        trials = as_undisturbed(study, undisturbed, database)
        recovered = study.recovered(heirs or disturbed, moment)
        return self.keep(Recovery(fault=fault, detected=detected, declared=declared, recovered=recovered, trials=trials))

    def keep(self, recovery: Recovery) -> float:
        print(recovery)
        self._record("recovery", asdict(recovery))
        return recovery.beyond


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Note:
    return Note(record_property)


def as_undisturbed(study: WatchedStudy, undisturbed: Path, database: str | None = None) -> int:
    """Check that nothing was lost, nothing done twice, and all is equal; return the number of trials."""
    left, tally = Left.of(study.storage, database, name="faults"), Tally()
    left.compare(Left.of(str(undisturbed), name="faults"), tally)
    assert tally.is_clean, tally.notes
    assert len(left.trials) == NUM_TRIALS
    return len(left.trials)


# No state is lost where every step is kept; and a lost machine is no failure of its trials: none needs to be forgiven.
KEEP_ALL = ("--resources.checkpoint-seconds", "0", "--resources.max-retries", "0", "--resources.max-concurrent", "2")
SEVERAL_STEPS = ("--resources.checkpoint-seconds", "0.5", "--resources.max-retries", "0", "--resources.max-concurrent", "2")


def fall_silent(node: Node) -> None:
    """Freeze a node: its connections stay open, and nothing comes of them."""
    signal_machine(node, signal.SIGSTOP)


@pytest.mark.parametrize(("name", "fail"), [("killed -9", lose), ("falls silent", fall_silent)], ids=["killed", "silent"])
def test_a_worker_node_lost_in_mid_trial(
    name: str, fail: Callable[[Node], None], field: Field, undisturbed: Path, note: Note
) -> None:
    field.add_node(), field.add_node()
    study = field.run(*KEEP_ALL)
    trial = study.wait_for("epoch", stage="regulation", epoch=2)["identity"]
    node = study.place(trial)
    disturbed = study.running(node)
    fault = time.time()
    fail(study.machine(node))
    study.finish()
    what = f"a worker node {name} in mid-trial"
    seconds = note(what, study, fault, dead_node=node, disturbed=disturbed, undisturbed=undisturbed)
    assert seconds < MOST_SECONDS


def test_the_node_that_pretrains_lost_in_mid_training(field: Field, undisturbed: Path, note: Note) -> None:
    field.add_node(), field.add_node()
    study = field.run(*KEEP_ALL)
    trial = study.wait_for("epoch", stage="pretraining", epoch=1)["identity"]
    node = study.place(trial)
    fault = time.time()
    lose(study.machine(node))
    study.finish()
    heir = study.first("epoch", after=fault, stage="pretraining", epoch=2)
    assert heir is not None
    fault_name = "the node that holds the lock of a shared run killed -9 in mid-pre-training"
    seconds = note(
        fault_name, study, fault, dead_node=node, disturbed={trial}, undisturbed=undisturbed, heirs={heir["identity"]}
    )
    assert seconds < MOST_SECONDS


def test_a_drained_node_s_trials_go_on_elsewhere(field: Field, undisturbed: Path, note: Note) -> None:
    field.add_node(), field.add_node()
    study = field.run(*KEEP_ALL)
    trial = study.wait_for("epoch", stage="regulation", epoch=1)["identity"]
    node = study.place(trial)
    reason = (
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "the spot market",
        "--deadline-remaining-seconds",
        "1",
    )
    drain = [RAY, "drain-node", "--address", study.cluster.address, "--node-id", node, *reason]
    subprocess.run(drain, env=study.cluster.environment, check=True, capture_output=True)
    disturbed = study.running(node)
    fault = time.time()
    lose(study.machine(node))  # the cloud does so at the deadline
    study.finish()
    assert not [event for event in study.events("started", node=node) if event["time"] > fault]
    seconds = note(
        "a node drained, then taken away", study, fault, dead_node=node, disturbed=disturbed, undisturbed=undisturbed
    )
    assert seconds < MOST_SECONDS


def test_the_driver_killed_and_run_again(field: Field, undisturbed: Path, note: Note) -> None:
    field.add_node()
    study = field.run(*KEEP_ALL)
    study.wait_for("epoch", stage="regulation", epoch=2)
    disturbed = study.running()
    fault = time.time()
    study.process.send_signal(signal.SIGKILL)
    study.process.communicate()
    study.start()
    study.finish()
    seconds = note("the driver killed -9 and run again", study, fault, disturbed=disturbed, undisturbed=undisturbed)
    assert seconds < MOST_SECONDS


def test_a_node_that_joins_late_takes_work(field: Field, undisturbed: Path, note: Note) -> None:
    field.add_node(cpus=1)
    study = field.run(*KEEP_ALL)
    study.wait_for("epoch", epoch=1)
    began = time.time()
    field.add_node(cpus=1)
    joined = study.wait_for("node", after=began, is_alive=True)
    study.finish()
    taken = {event["identity"] for event in study.events("started", node=joined["id"])}
    assert taken, "the late node stood empty"
    first = min(
        event["time"] for event in study.events("epoch") if event["identity"] in taken and event["time"] > joined["time"]
    )
    trials = as_undisturbed(study, undisturbed)
    seconds = note.keep(
        Recovery(fault="a node joins late", detected=joined["time"] - began, recovered=first - began, trials=trials)
    )
    assert seconds < MOST_SECONDS


def test_storage_that_errors_for_twenty_seconds(
    field: Field, undisturbed: Path, note: Note, s3_server: str, bucket: str
) -> None:
    field.add_node()
    with Gate(s3_server) as gate:
        study = field.run(*SEVERAL_STEPS, storage=bucket.replace(s3_server, gate.address))
        study.wait_for("epoch", stage="pretraining", epoch=1)
        disturbed = study.running()
        gate.close()
        time.sleep(OUTAGE_SECONDS)  # how long the outage lasts
        gate.open()
        fault = time.time()
        study.finish()
        seconds = note(f"storage errs for {OUTAGE_SECONDS:.0f} s", study, fault, disturbed=disturbed, undisturbed=undisturbed)
        assert seconds < MOST_SECONDS


def test_a_restart_of_postgresql(field: Field, undisturbed: Path, note: Note, database: str, postgresql: Any) -> None:
    field.add_node()
    study = field.run(*KEEP_ALL, "--optuna-storage", database)
    study.wait_for("epoch", stage="regulation", epoch=2)
    disturbed = study.running()
    fault = time.time()
    postgresql.stop()
    postgresql.start()
    study.finish()
    seconds = note("PostgreSQL restarted", study, fault, disturbed=disturbed, undisturbed=undisturbed, database=database)
    assert seconds < MOST_SECONDS


def test_a_lease_stands_on_its_holder_s_node(field: Field) -> None:
    field.add_node(), field.add_node()
    module = (sys.executable, "-m", "tests.integration.lease_places", field.head.address, "3")
    output, _ = field.head.start(*module).communicate(timeout=PATIENCE)
    assert json.loads(output.splitlines()[-1]) == {"nodes": 3, "beside": 12}, output
