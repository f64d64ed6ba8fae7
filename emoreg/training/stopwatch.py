"""Where a trial's time goes: seconds by phase, and a trace of the first steps of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from emoreg.storage.permissions import make_folder

T = TypeVar("T")
P = ParamSpec("P")

Phase = Literal["data", "forward", "backward", "optimizer", "evaluation", "writing"]

_TRACED = schedule(wait=1, warmup=1, active=8, repeat=1)
"""Steps of a stage: the first one builds kernels, and tracing itself needs one to warm up."""


class Stopwatch:
    """What a trial says of its phases. This one does not listen, and costs nothing: ``Profile`` does."""

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Within, time counts for the phase, but for that of a phase within it."""
        return nullcontext()

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Within, the steps are those of a stage."""
        return nullcontext()

    def step(self) -> None:
        """Tell that a step of a stage has ended."""

    def timed(self, name: Phase, function: Callable[P, T]) -> Callable[P, T]:
        """The function, in a phase whenever it is called."""

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def each(self, name: Phase, items: Iterable[T]) -> Iterator[T]:
        """The items, each made in a phase."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


class Profile(Stopwatch):
    """Adds up the phases, and writes a trace of each stage's first steps for TensorBoard or Perfetto.

    On a GPU it waits for the device at the end of each phase, so that a phase counts its own work: that costs some speed.

    Attributes:
        seconds: by phase, in the order in which they first ended.
        traces: files that were written.
    """

    def __init__(self, device: torch.device, folder: Path) -> None:
        """Profile a trial on a device; traces go to a folder."""
        self.seconds: dict[str, float] = {}
        self.traces: list[Path] = []
        self._device = device
        self._folder = folder
        self._within: list[float] = []  # seconds of the phases within each phase that is open
        self._profiler: profile | None = None

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Within, time counts for the phase, but for that of a phase within it."""
        started = time.perf_counter()
        self._within.append(0.0)
        try:
            with record_function(name):
                yield
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
        finally:
            taken = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + taken - self._within.pop()
            if self._within:
                self._within[-1] += taken

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within, the steps are those of a stage: its first ones are traced."""
        make_folder(self._folder)
        path = self._folder / f"{name}.{time.time_ns()}.pt.trace.json"

        def write(profiler: profile) -> None:
            profiler.export_chrome_trace(str(path))
            self.traces.append(path)

        gpu = {ProfilerActivity.CUDA} if self._device.type == "cuda" else set()
        with profile(activities={ProfilerActivity.CPU} | gpu, schedule=_TRACED, on_trace_ready=write) as self._profiler:
            yield
        self._profiler = None

    def step(self) -> None:
        """Tell that a step of a stage has ended."""
        if self._profiler is not None:
            self._profiler.step()
