"""`emoreg run` with a diary of what its driver hears, and when.

    python -m tests.integration.watched_run DIARY STUDY ...

A line of JSON for each event, with ``time`` in seconds since 1970 and ``what``: ``node`` (Ray shows a node, or shows it dead),
``started``, ``epoch``, ``broken`` and ``ended`` (of trials). The study is otherwise run as it is.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray.tune.experiment import Trial

from emoreg.cli import main as cli
from emoreg.results.records import EpochRecord
from emoreg.tuning import study
from emoreg.tuning.bridge import TuneBridge
from emoreg.tuning.queue import JOB, Job
from emoreg.tuning.tune_results import EVENT, TrialPlaced

_LOOK_SECONDS = 0.1


class Diary:
    def __init__(self, path: Path) -> None:
        self._stream = open(path, "a", buffering=1)  # noqa: SIM115
        self._lock = threading.Lock()

    def note(self, what: str, **more: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps({"time": time.time(), "what": what, **more}) + "\n")

    def watch_nodes(self) -> None:
        seen: dict[str, bool] = {}
        while not ray.is_initialized():
            time.sleep(_LOOK_SECONDS)
        while ray.is_initialized():
            for node in ray.nodes():
                if seen.get(node["NodeID"]) != node["Alive"]:
                    seen[node["NodeID"]] = node["Alive"]
                    self.note("node", name=node["NodeName"], id=node["NodeID"], is_alive=node["Alive"])
            time.sleep(_LOOK_SECONDS)


class WatchedBridge(TuneBridge):
    diary: ClassVar[Diary]

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.diary.note("driver", node=ray.get_runtime_context().get_node_id())

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        super().on_trial_result(iteration, trials, trial, result, **info)
        job: Job = trial.config[JOB]
        match result.get(EVENT):
            case TrialPlaced() as placed:
                self.diary.note("started", identity=job.trial.identity, attempt=job.attempts, node=placed.node_id)
            case EpochRecord() as row:
                self.diary.note("epoch", identity=row.identity, stage=row.stage, epoch=row.epoch)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        super().on_trial_error(iteration, trials, trial, **info)
        self.diary.note("broken", identity=trial.config[JOB].trial.identity)

    def _end(self, trial: Trial, *arguments: Any) -> None:
        super()._end(trial, *arguments)
        self.diary.note("ended", identity=trial.config[JOB].trial.identity)


if __name__ == "__main__":
    from tests.integration import watched_run  # noqa: PLW0406 - so that Tune, which pickles its callbacks, finds the class

    path, *arguments = sys.argv[1:]
    watched_run.WatchedBridge.diary = diary = Diary(Path(path))
    study.TuneBridge = watched_run.WatchedBridge  # type: ignore[misc]
    threading.Thread(target=diary.watch_nodes, daemon=True).start()
    sys.exit(cli.main(["run", *arguments]))
