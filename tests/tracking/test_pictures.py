from __future__ import annotations

import numpy as np
import pytest
import torch

from emoreg.results.records import TrialRecord
from emoreg.results.tables import Records
from emoreg.tracking.pictures import confusion_matrix, response_figures, sample_sheet
from tests.helpers.written import made_up_config, write_study

CONFIG = made_up_config(num_trials=20, control_seeds=(0,))


def test_a_sample_sheet_enlarges_pixels_without_smoothing() -> None:
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sheet = np.asarray(sample_sheet(images, ("zero", "one", "two", "three", "a name that is much too long to be drawn")))
    top = 8 + 15  # a gap, and the captions
    assert (sheet[top : top + 64, 8 : 8 + 64] == images[0].permute(1, 2, 0).numpy().repeat(4, axis=0).repeat(4, axis=1)).all()
    assert sheet[:top, 8 : 8 + 64].min() < 100, "the caption is drawn"
    assert sheet[:, :8].min() == 255


def test_a_sample_sheet_keeps_large_images_as_they_are() -> None:
    assert sample_sheet(torch.zeros(1, 3, 128, 128, dtype=torch.uint8), ("x",)).width == 8 + 128 + 8


def test_a_confusion_matrix_shades_by_the_share_of_the_row() -> None:
    picture = confusion_matrix(torch.tensor([[90, 10], [0, 0]]), ("cat", "dog"))
    left = picture.width - 10 - 2 * 26
    corners = [[picture.getpixel((left + 26 * column + 3, left + 26 * row + 3)) for column in (0, 1)] for row in (0, 1)]
    assert corners[0][0] == (33, 69, 122)
    assert corners[0][1] == (230, 234, 240)
    assert corners[1] == [(255, 255, 255)] * 2, "a class without images is blank, not a division by zero"


@pytest.mark.parametrize("num_classes", [1, 10, 100, 1000])
def test_a_confusion_matrix_stays_of_a_size_to_look_at(num_classes: int) -> None:
    counts = torch.ones(num_classes, num_classes, dtype=torch.int64)
    picture = confusion_matrix(counts, tuple(f"class {index}" for index in range(num_classes)))
    assert max(picture.size) <= 1900


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[TrialRecord]:
    folder = write_study(tmp_path_factory.mktemp("pictures"), CONFIG, num_seeds=0)
    return list(Records(folder).trials.values())


def test_responses_are_drawn_for_the_numbers_that_were_searched(records: list[TrialRecord]) -> None:
    figures = dict(response_figures(CONFIG, records))
    assert set(figures) == {"regulation.balance", "pretraining.epochs"}
    for figure in figures.values():
        (axes,) = figure.axes
        assert len(axes.lines) == 2, "a surrogate's mean for each backbone"
        assert {text.get_text() for text in axes.get_legend().get_texts()} == set(CONFIG.backbones())
    assert figures["pretraining.epochs"].axes[0].get_xscale() == "log"


def test_few_trials_are_points_alone(records: list[TrialRecord]) -> None:
    finished = [row for row in records if row.number is not None and row.status == "finished"]
    for _, figure in response_figures(CONFIG, finished[:2]):
        assert len(figure.axes[0].lines) == 0
    assert list(response_figures(CONFIG, [])) == []
