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
from emoreg.tuning.driver import Driver
from ray.tune.experiment import Trial

from emoreg.cli import main as cli
from emoreg.tuning import study

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


class WatchedDriver(Driver):
    diary: ClassVar[Diary]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.diary.note("driver", node=ray.get_runtime_context().get_node_id())

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        super().on_trial_start(iteration, trials, trial, **info)
        node = self._machines._nodes[trial.trial_id]
        self.diary.note("started", identity=trial.config["trial"].identity, attempt=trial.config["attempt"], node=node)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        super().on_trial_result(iteration, trials, trial, result, **info)
        if "stage" in result:
            self.diary.note("epoch", identity=trial.config["trial"].identity, stage=result["stage"], epoch=result["epoch"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        super().on_trial_error(iteration, trials, trial, **info)
        self.diary.note("broken", identity=trial.config["trial"].identity)

    def _end(self, trial: Trial, *arguments: Any, **more: Any) -> None:
        super()._end(trial, *arguments, **more)
        self.diary.note("ended", identity=trial.config["trial"].identity)


if __name__ == "__main__":
    from tests.integration import watched_run  # noqa: PLW0406 - so that Tune, which pickles its callbacks, finds the class

    path, *arguments = sys.argv[1:]
    watched_run.WatchedDriver.diary = diary = Diary(Path(path))
    study.Driver = watched_run.WatchedDriver  # type: ignore[misc]
    threading.Thread(target=diary.watch_nodes, daemon=True).start()
    sys.exit(cli.main(["run", *arguments]))
