"""The face that Ray Tune sees of a study's search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.search import Searcher

from emoreg.tuning.dispatcher import Dispatcher
from emoreg.tuning.queue import JOB


class TuneSearcher(Searcher):
    """Gives Tune the dispatcher's jobs until there are no more. How trials end is told by ``bridge.TuneBridge`` alone.

    It says itself when the search is over: give ``TuneConfig(num_samples=-1)``.
    """

    def __init__(
        self, dispatcher: Dispatcher, *, slots: Callable[[], int], is_stopping: Callable[[], bool], may_wait: int = 1
    ) -> None:
        """Begin.

        Args:
            slots: trials that fit at once, as the cluster is now.
            is_stopping: whether the study has been told to stop: then nothing more is handed out.
            may_wait: trials that may wait for a place beyond the slots.
        """
        super().__init__()
        self._dispatcher = dispatcher
        self._slots = slots
        self._is_stopping = is_stopping
        self._may_wait = may_wait

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept what ``TuneConfig`` names for its scheduler; the objectives are the study's own."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next job, ``Searcher.FINISHED``, or None while there is nothing that can start."""
        if self._is_stopping():
            return str(Searcher.FINISHED)
        job = self._dispatcher.next(trial_id, slots=self._slots(), may_wait=self._may_wait)
        if job is not None:
            return {JOB: job}
        return str(Searcher.FINISHED) if self._dispatcher.is_done else None

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: ``TuneBridge`` hears of every end, and records it before the source of trials is told."""

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: Optuna's storage and the records are the state, and running the study again resumes it."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing, see ``save``."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its TuneConfig into the experiment's folder, where a database's password has no place.
        return {}
