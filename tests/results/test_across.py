"""One answer over several studies, against worked examples."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from emoreg.results.across import across, across_line, clustered_share, random_effects, together
from emoreg.results.ladder import LADDER, climb
from emoreg.results.study import StudyResults, load_results
from tests.helpers.written import made_up_config, write_study

BCG = (
    (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
    (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232), (17, 1699, 65, 1600),
    (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
)  # fmt: skip
"""Trials of the vaccine (Colditz et al. 1994): ill and not ill, of the vaccinated and of the others."""


def log_risk_ratios() -> tuple[list[float], list[float]]:
    ratios = [math.log((a / (a + b)) / (c / (c + d))) for a, b, c, d in BCG]
    return ratios, [1 / a - 1 / (a + b) + 1 / c - 1 / (c + d) for a, b, c, d in BCG]


def test_random_effects_are_those_of_metafor() -> None:
    found = random_effects(*log_risk_ratios())
    assert (found.num_units, found.mean) == (13, pytest.approx(-0.7141, abs=5e-5)), "Viechtbauer 2010, method DL"
    assert found.deviation**2 == pytest.approx(0.3088, abs=5e-5)
    # Its interval with test="knha" is -1.1082 to -0.3208 where tau squared is 0.3132, by REML.
    assert found.interval == pytest.approx((-1.1082, -0.3208), abs=3e-3)


def test_of_equal_variances_the_interval_is_student_s() -> None:
    effects = [0.01, 0.03, -0.01, 0.05]
    found = random_effects(effects, [1e-5] * 4)
    assert found.interval == pytest.approx(stats.ttest_1samp(effects, 0.0).confidence_interval(0.95))
    assert found.deviation**2 == pytest.approx(np.var(effects, ddof=1) - 1e-5)


def test_effects_that_happen_to_be_alike_do_not_make_the_interval_short() -> None:
    found = random_effects([0.01, 0.01, 0.01], [1e-4] * 3)
    half = stats.t.ppf(0.975, 2) * (1e-4 / 3) ** 0.5
    assert (found.deviation, found.interval) == (0.0, pytest.approx((0.01 - half, 0.01 + half)))
    assert random_effects([0.01, 0.01], [0.0, 0.0]).mean == pytest.approx(0.01), "gains that do not vary"


def test_the_interval_covers_the_mean_of_effects_that_differ() -> None:
    random, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        variances = random.uniform(0.2, 2.0, 5)
        effects = random.normal(1.0, 1.0, 5) + random.normal(0.0, variances**0.5)
        low, high = random_effects(effects, variances).interval
        covered += low <= 1.0 <= high
    assert 0.93 <= covered / 1000 <= 0.98


def test_a_share_of_clusters_that_are_alike_is_that_of_all_but_for_their_number() -> None:
    many = clustered_share([10] * 200, [0.8, 0.7, 0.9, 0.8] * 50)
    assert many[0] == pytest.approx(0.8)
    exact = stats.binomtest(1600, 2000).proportion_ci(method="exact")
    assert many[1] == pytest.approx((exact.low, exact.high), abs=1e-3)
    few = clustered_share([10, 10, 10], [0.8, 0.8, 0.8])
    assert few[1].low < stats.binomtest(24, 30).proportion_ci(method="exact").low, "three clusters tell less than thirty seeds"
    share, interval = clustered_share([10, 10, 10, 10], [1.0, 1.0, 1.0, 1.0])
    assert (share, interval.high) == (1.0, 1.0)
    assert 0.6 < interval.low < 0.95
    assert clustered_share([10, 10, 10], [0.1, 0.5, 0.9])[1] == pytest.approx((0.0, 1.0), abs=0.05), "they tell nothing"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StudyResults]:
    """Confirmed studies of two backbones, by how far regulation helps in each."""
    storage, found = tmp_path_factory.mktemp("runs"), {}
    for name, helps in {"useless": 0.0, "weak": 0.2, "half": 0.5, "helps": 1.0}.items():
        config = made_up_config(name=name, num_trials=8)
        found[name] = load_results(write_study(storage, config, helps=helps, noise=0.02))
    return found


def test_the_ladders_of_all_studies_are_corrected_for_each_other(written: dict[str, StudyResults]) -> None:
    alone = [written[name] for name in ("weak", "helps", "useless")]
    both = together(alone)
    assert [len(study.beside) for study in both] == [4, 4, 4]
    climbs = climb({(study.name, identity): found for study in alone for identity, found in study.ladders.items()})
    heights = {}
    for before, after in zip(alone, both, strict=True):
        assert before.verdicts.keys() == after.verdicts.keys()
        for identity, verdict in after.verdicts.items():
            beaten = {control for rung in LADDER[: climbs[after.name, identity].height] for control in rung.controls}
            assert set(verdict.beaten) == beaten & {rival.control for rival in after.ladders[identity]}
            heights[after.name, identity] = len(before.verdicts[identity].beaten), len(verdict.beaten)
    assert all(now <= then for then, now in heights.values())
    assert any(now < then for then, now in heights.values()), "six ladders share what two had for themselves"


def test_what_is_gained_over_all_studies(written: dict[str, StudyResults], tmp_path: Path) -> None:
    studies = [written["helps"], written["half"]]
    found = {row.control: row for row in across(together(studies))}
    assert list(found)[:3] == ["plain", "compute_matched", "ensemble"], "in the order of the ladder"
    plain = found["plain"]
    assert (plain.gain.num_units, plain.num_seeds) == (4, 40)
    gains = [row.comparison.mean for study in studies for row in study.confirmed if row.control == "plain" and row.comparison]
    assert min(gains) < plain.gain.mean < max(gains)
    assert plain.share_above > 0.9
    assert across_line(studies).startswith("Together, 4 of 4 ladders in 2 studies hold a rung")
    assert across(studies[:1])[0].gain.num_units == 2, "two backbones of one study"
    assert across_line([load_results(write_study(tmp_path, made_up_config(name="c", num_trials=8), num_seeds=0))]) == ""
