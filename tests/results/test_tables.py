"""When a table's file is replaced, and when it is left alone."""

from __future__ import annotations

from pathlib import Path

from emoreg.config.resolved import resolve_trial
from emoreg.results.tables import Records
from tests.helpers.studies import ended
from tests.helpers.trials import TINY
from tests.helpers.written import epoch_record


def test_a_table_is_replaced_where_a_row_has_come_or_its_file_is_not_as_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "records" / "epochs.parquet"
    records = Records(tmp_path)
    records.add_epoch(epoch_record(resolve_trial(TINY), "regulation", 1, 0.5))
    records.write()
    content, number = path.read_bytes(), path.stat().st_ino
    records.add_trial(ended())
    assert path.stat().st_ino == number, "nothing has come since"
    records.add_epoch(epoch_record(resolve_trial(TINY), "regulation", 2, 0.5))
    records.write()
    assert path.read_bytes() != content
    whole = path.read_bytes()
    path.unlink()
    records.write()
    assert path.read_bytes() == whole, "who removed it loses nothing"
    Records(tmp_path).write()  # as another driver does
    path.write_bytes(content)  # an older one, as from a copy
    records.write()
    assert path.read_bytes() == whole
    assert Records(tmp_path).epochs == records.epochs
