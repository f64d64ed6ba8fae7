from __future__ import annotations

from pathlib import Path

from emoreg.tuning.bridge import death_of

MEMORY = """Failure # 1 (occurred at 2026-11-29_07-49-59)
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 87d4) was 22.50GB used / \
23.54GB limit (0.955820)
OOM kill reason: Memory usage exceeded threshold (95.0% of 25276510208B limit)
"""


def test_a_worker_that_ray_s_memory_monitor_ended_is_told_of_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "error.txt").write_text(MEMORY)
    said = death_of(str(tmp_path / "error.txt"))
    assert said.startswith(
        "the memory of its node was full (22.50GB used / 23.54GB), so Ray ended its worker: run fewer trials"
    )
    for cure in ("--resources.max-concurrent", "smaller batch", "RAY_memory_usage_threshold"):
        assert cure in said


def test_a_worker_that_died_otherwise_has_died(tmp_path: Path) -> None:
    (tmp_path / "error.txt").write_text("The actor died unexpectedly before finishing this task.")
    assert {death_of(None), death_of(str(tmp_path / "none")), death_of(str(tmp_path / "error.txt"))} == {"its worker died"}
