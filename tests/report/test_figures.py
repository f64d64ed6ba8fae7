from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emoreg.config import CONFIRM, Choice, Distribution, Float, Int, Objective, RegulationConfig, Value, When
from emoreg.report import search_figures
from emoreg.report.figures import FIGURES, compare_studies, draw_figures
from emoreg.report.style import Figure, FigureContext, NotDrawn
from emoreg.report.training_figures import costs
from emoreg.results.analysis import device_time
from emoreg.results.records import TrialRecord
from emoreg.results.study import StudyResults, load_results
from tests.helpers.written import OPTIMUM, made_up_config, write_measured, write_study

ALL = [
    "gains", "accuracy-by-balance", "accuracy-by-pretraining", "accuracy-by-both", "accuracy-by-share",
    "optimization-history", "importances", "parallel-coordinates", "slices", "pareto-front", "learning-curves",
    "balance-over-epochs", "accuracy-by-class", "cost",
]  # fmt: skip

OF_RECORDS = [name for name in ALL if name not in ("accuracy-by-share", "accuracy-by-class")]
"""Those that need neither a probe nor evaluations."""
Written = Callable[..., StudyResults]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """A study that was written with these settings, read back."""

    def write(num_seeds: int = 0, helps: float = 1.0, noise: float = 0.01, **config: object) -> StudyResults:
        settings: dict[str, object] = {"num_trials": 12, "controls": ("regulated", "plain"), **config}
        return load_results(write_study(tmp_path, made_up_config(**settings), num_seeds=num_seeds, helps=helps, noise=noise))

    return write


@pytest.fixture
def few_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of other figures: the importances by chance take most of the time that a report needs."""
    monkeypatch.setattr(search_figures, "_NUM_PERMUTED", 1)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    config = made_up_config(num_trials=90)
    folder = write_study(tmp_path_factory.mktemp("runs"), config, num_seeds=10, noise=0.003)
    write_measured(folder)
    write_measured(folder.with_name(f"{folder.name}{CONFIRM}"), split="test")
    return load_results(folder)


@pytest.fixture(scope="module")
def figures(study: StudyResults) -> dict[str, Figure]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_figures, "_NUM_PERMUTED", 5)
        return {figure.name: figure for figure in draw_figures(study)[0]}


def named(study: StudyResults) -> dict[str, Figure]:
    """The figures of a study, each checked to be drawable, and nothing both drawn and missed."""
    drawn, missing = draw_figures(study)
    found = {figure.name: figure for figure in drawn}
    for figure in found.values():
        assert json.loads(figure.figure.to_json())["data"], figure.name
    assert len(found) + len(missing) == len(ALL)
    return found


def only(study: StudyResults, *names: str) -> dict[str, Figure]:
    """Some figures of a study, where the others would take most of the time."""
    context, found = FigureContext(study=study), {}
    for section, figures in FIGURES.items():
        for (name, title), draw in figures.items():
            if name in names:
                figure, caption = draw(context)
                found[name] = Figure(name=name, title=title, section=section, caption=caption, figure=figure)
    assert [*found] == [*names]
    return found


def traces(figure: Figure, **having: object) -> list[Any]:
    return list(figure.figure.select_traces(having))


def with_trials(study: StudyResults, trials: Sequence[TrialRecord]) -> StudyResults:
    return dataclasses.replace(study, trials=tuple(trials))


def test_every_figure_is_drawn_in_reading_order(study: StudyResults, figures: dict[str, Figure]) -> None:
    assert list(figures) == ALL
    sections = [figure.section for figure in figures.values()]
    assert list(dict.fromkeys(sections)) == ["answer", "response", "search", "training", "images", "cost"]


def test_gains_are_those_of_the_confirmation(study: StudyResults, figures: dict[str, Figure]) -> None:
    comparisons = {(row.chosen.name, str(row.rival)): row.comparison for row in study.confirmed if row.comparison is not None}
    means = [trace for trace in figures["gains"].figure.data if trace.showlegend is None]
    for trace in means:
        for gain, row in zip(trace.x, trace.hovertext, strict=True):
            assert gain == 100 * comparisons[trace.name, row.removeprefix("over ")].mean
        filled = {row for row, symbol in zip(trace.hovertext, trace.marker.symbol, strict=True) if symbol == "circle"}
        assert filled == {row for row in trace.hovertext if row != "over emotional"}, "that is on no rung"
    assert "helps" in figures["gains"].caption
    assert len(means) == 2
    seeds = [trace for trace in figures["gains"].figure.data if trace.showlegend is False]
    assert sum(len(trace.x) for trace in seeds) == sum(found.n for found in comparisons.values()), "a dot a seed"


def test_configurations_of_one_backbone_differ_in_shape(tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=12, controls=("regulated", "plain")), top=2, num_seeds=3)
    gains = only(load_results(folder), "gains")["gains"].figure.data
    drawn = [trace for trace in gains if trace.showlegend is None]
    looks = {
        trace.name: (trace.marker.color, {symbol.removesuffix("-open") for symbol in trace.marker.symbol}) for trace in drawn
    }
    assert {name: shapes for name, (_, shapes) in looks.items()} == {
        "test_resnet": {"circle"},
        "test_resnet, number 2": {"square"},
        "test_vit": {"circle"},
        "test_vit, number 2": {"square"},
    }
    assert looks["test_resnet"][0] == looks["test_resnet, number 2"][0] != looks["test_vit"][0]


def test_gains_without_a_confirmation_claim_nothing(written: Written) -> None:
    gains = only(written(), "gains")["gains"]
    assert "nothing is claimed" in gains.caption
    assert "validation" in gains.caption
    assert "helps" not in gains.caption
    assert all(set(trace.marker.symbol) == {"circle-open"} for trace in gains.figure.data)


def test_one_seed_of_controls_has_no_interval(written: Written) -> None:
    gains = only(written(control_seeds=(0,)), "gains")["gains"]
    assert "One seed tells nothing about chance" in gains.caption
    assert set(gains.figure.data[0].error_x.array) == {0.0}


def test_where_emotion_does_not_help_nothing_claims_it(written: Written) -> None:
    gains = only(written(num_seeds=10, helps=0.0), "gains")["gains"]
    assert "no effect as large as 0.5 points" in gains.caption
    assert "helps" not in gains.caption


@pytest.mark.parametrize("name", ["accuracy-by-balance", "accuracy-by-pretraining"])
def test_curves_have_their_trials_their_optimum_and_the_plain_control(
    study: StudyResults, figures: dict[str, Figure], name: str
) -> None:
    finished = [row for row in study.searched if row.status == "finished"]
    assert sum(len(trace.x) for trace in traces(figures[name], mode="markers") if trace.marker.symbol is None) == len(finished)
    optima = [trace for trace in traces(figures[name], mode="markers") if trace.marker.symbol == "diamond"]
    assert len(optima) == 2
    if name == "accuracy-by-balance":
        for trace in optima:
            assert trace.x[0] - trace.error_x.arrayminus[0] <= OPTIMUM <= trace.x[0] + trace.error_x.array[0]
    else:
        assert all(trace.x[0] > 8 for trace in optima)
    plain = {row.backbone: 100 * row.accuracy.mean for row in study.controls if row.control == "plain"}
    assert {trace.name.removesuffix(", plain"): trace.y[0] for trace in traces(figures[name], line_dash="dash")} == plain
    assert "90 % interval" in figures[name].caption


def test_pretraining_stands_on_a_logarithmic_axis(figures: dict[str, Figure]) -> None:
    axis = figures["accuracy-by-pretraining"].figure.layout.xaxis
    assert (axis.type, list(axis.tickvals)) == ("log", [2, 4, 8, 16, 32])


def searched_over(study: StudyResults, space: Mapping[str, Distribution]) -> StudyResults:
    """The study, had it searched this space."""
    config = dataclasses.replace(study.config, search_space=space)
    return dataclasses.replace(study, written=dataclasses.replace(study.written, config=config))


def searching(study: StudyResults, space: Mapping[str, Distribution], params: Sequence[Mapping[str, Value]]) -> StudyResults:
    """The study, had it searched this space and found these values."""
    rows = [dataclasses.replace(row, params=json.dumps(own)) for row, own in zip(study.searched, params, strict=True)]
    return searched_over(dataclasses.replace(study, trials=tuple(rows)), space)


def test_lengths_that_are_choices_are_numbers(written: Written) -> None:
    params = [{"pretraining.epochs": (2, 4, 8)[index % 3]} for index in range(90)]
    study = searching(written(num_trials=90), {"pretraining.epochs": Choice((2, 4, 8))}, params)
    found = only(study, "accuracy-by-pretraining")["accuracy-by-pretraining"].figure
    assert list(found.layout.xaxis.tickvals) == [2, 4, 8]
    assert any(trace.marker.symbol == "diamond" for trace in found.data)
    with pytest.raises(NotDrawn, match="The balance was not searched"):
        only(study, "accuracy-by-both")


def test_the_map_has_a_panel_a_backbone(study: StudyResults, figures: dict[str, Figure]) -> None:
    assert len(traces(figures["accuracy-by-both"], type="contour")) == 2
    assert all(backbone in figures["accuracy-by-both"].caption for backbone in study.backbones)


def test_the_history_is_the_records(study: StudyResults, figures: dict[str, Figure]) -> None:
    finished = {row.number: 100 * row.val_accuracy for row in study.searched if row.status == "finished" and row.val_accuracy}
    points = traces(figures["optimization-history"], mode="markers")[0]
    assert dict(zip(points.x, points.y, strict=True)) == finished
    assert max(traces(figures["optimization-history"], mode="lines")[0].y) == max(finished.values())
    assert "14 pruned, 4 failed" in figures["optimization-history"].caption


def test_numbers_without_a_record_stay_free(written: Written) -> None:
    study = written()
    rows = [row for row in study.trials if row.number != 0]
    history = only(with_trials(study, rows), "optimization-history")["optimization-history"]
    points = traces(history, mode="markers")[0]
    assert list(points.x) == [row.number for row in study.searched[1:] if row.status == "finished"]


def test_importances_find_what_decides(figures: dict[str, Figure]) -> None:
    importances = figures["importances"]
    shares = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in traces(importances, type="bar")}
    chance = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in traces(importances, type="scatter")}
    assert set(shares) == {"fANOVA", "PED-ANOVA"}
    assert set(chance) == {"fANOVA, by chance", "PED-ANOVA, by chance"}
    for found in shares.values():
        assert sum(found.values()) == pytest.approx(100)
    assert max(shares["fANOVA"], key=lambda path: shares["fANOVA"][path]) == "backbone"
    assert shares["fANOVA"]["backbone"] > 70 > chance["fANOVA, by chance"]["backbone"]
    assert "fANOVA puts backbone first" in importances.caption
    explained = re.search(r"R² = (-?\d\.\d\d)", importances.caption)
    assert explained is not None
    assert 0.8 < float(explained[1]) <= 1


def test_of_noise_no_parameter_is_put_first(study: StudyResults) -> None:
    random = np.random.default_rng(1)
    of_one = [row for row in study.trials if row.backbone == "test_vit"]
    rows = [dataclasses.replace(row, val_accuracy=random.normal(0.5, 0.01)) for row in of_one]
    caption = only(with_trials(study, rows), "importances")["importances"].caption
    assert "first" not in caption
    assert "fANOVA tells nothing above chance; PED-ANOVA tells nothing above chance" in caption


def test_few_trials_tell_neither_an_optimum_nor_importances(written: Written) -> None:
    study = written(num_trials=24)
    names = ("accuracy-by-balance", "accuracy-by-pretraining", "accuracy-by-both")
    found = only(study, *names)
    for name in names:
        assert not [trace for trace in traces(found[name], mode="markers") if trace.marker.symbol == "diamond"]
        assert "cannot be told below 30 finished trials" in found[name].caption
    with pytest.raises(NotDrawn, match=r"^The importance of parameters cannot be told below 30"):
        only(study, "importances")


def test_curves_of_survivors_say_so(study: StudyResults, figures: dict[str, Figure]) -> None:
    told = "Survivors only: 14 trials that the scheduler stopped early are not in it"
    for name in ("accuracy-by-balance", "accuracy-by-pretraining", "accuracy-by-both", "importances"):
        assert told in figures[name].caption
    rows = [row for row in study.trials if row.status != "pruned"]
    found = only(with_trials(study, rows), "accuracy-by-balance")["accuracy-by-balance"]
    assert "Survivors" not in found.caption


def test_learned_balances_are_left_out_beside_fixed_ones(study: StudyResults, figures: dict[str, Figure]) -> None:
    assert "The balance was learned: the axis has where it began." in figures["accuracy-by-balance"].caption
    fixed = {row.identity for row in study.searched[:40]}
    rows = [dataclasses.replace(row, kind="fixed") if row.identity in fixed else row for row in study.trials]
    found = only(with_trials(study, rows), "accuracy-by-balance")["accuracy-by-balance"]
    num_fixed = sum(row.identity in fixed and row.status == "finished" for row in study.searched)
    assert f"{num_fixed} finished trials of the search." in found.caption
    assert "learned" not in found.caption


@pytest.mark.usefixtures("few_permutations")
def test_a_conditional_parameter_is_left_out_of_importances_and_drawn_elsewhere(written: Written) -> None:
    config = made_up_config()
    space = {**config.search_space, "drop_path": Float(0.0, 0.2, when=When("backbone", ("test_vit",)))}
    study = written(search_space=space, num_trials=90)
    rows = [
        dataclasses.replace(row, params=json.dumps({**json.loads(row.params), "drop_path": 0.01 * (row.number or 0) % 0.2}))
        if row.backbone == "test_vit" and row.number is not None
        else row
        for row in study.trials
    ]
    found = only(with_trials(study, rows), "importances", "parallel-coordinates", "slices")
    assert "drop_path" in found["importances"].caption
    labels = {label.text.lower() for label in found["parallel-coordinates"].figure.layout.annotations}
    assert "none" in labels
    assert "None: the trial" in found["parallel-coordinates"].caption
    assert len(traces(found["slices"])) == 4


def test_a_trial_that_has_no_balance_is_not_drawn_against_it(study: StudyResults, figures: dict[str, Figure]) -> None:
    random = {row.identity for row in study.searched[:10]}
    rows = [dataclasses.replace(row, kind="random") if row.identity in random else row for row in study.trials]
    by_balance = ("accuracy-by-balance", "accuracy-by-both")
    found = only(with_trials(study, rows), *by_balance)
    for name in by_balance:
        drawn = [sum(len(trace.x) for trace in traces(of[name], type="scatter", mode="markers")) for of in (figures, found)]
        assert drawn[0] - drawn[1] == sum(row.identity in random and row.status == "finished" for row in study.searched)
    everything = [dataclasses.replace(row, kind="random_learnable") for row in study.trials]
    for name in by_balance:
        with pytest.raises(NotDrawn, match="No finished trial has a balance setting"):
            only(with_trials(study, everything), name)


def test_choices_alone_can_be_searched(written: Written) -> None:
    forms: tuple[Value, ...] = ("output", "conditioned")
    params = [{"regulation.form": forms[index % 2], "deterministic": index % 3 == 0} for index in range(12)]
    space = {"regulation.form": Choice(forms), "deterministic": Choice((True, False))}
    found = named(searching(written(), space, params))
    assert not [name for name in found if name.startswith("accuracy-by")]
    assert {"slices", "parallel-coordinates"} <= set(found)
    assert {value for trace in found["slices"].figure.data for value in trace.x} == {"output", "conditioned", "True", "False"}


def test_the_front_is_the_one_by_comparison(study: StudyResults, figures: dict[str, Figure]) -> None:
    points = [(row.device_seconds, 100 * (row.val_accuracy or 0.0)) for row in study.searched if row.status == "finished"]
    line = traces(figures["pareto-front"], mode="lines")[0]
    beaten = {
        (x, y) for x, y in points for cost, accuracy in points if cost <= x and accuracy >= y and (cost, accuracy) != (x, y)
    }
    assert list(zip(line.x, line.y, strict=True)) == sorted({*points} - beaten)


def test_learning_curves_are_the_epochs(study: StudyResults, figures: dict[str, Figure]) -> None:
    best = [trace for trace in figures["learning-curves"].figure.data if trace.name == "best of the search"]
    expected = {
        tuple(100 * (row.val_accuracy or 0.0) for row in study.epochs_of(record.identity) if row.stage == "regulation")
        for record in study.best.values()
    }
    assert {tuple(trace.y) for trace in best} == expected
    plain = [row for row in study.trials if row.role == "control" and row.control == "plain" and row.backbone == "test_vit"]
    last = [trace for trace in figures["learning-curves"].figure.data if trace.name == "plain"][1].y[-1]
    ends = [study.epochs_of(row.identity)[-1].val_accuracy or 0.0 for row in plain]
    assert last == pytest.approx(100 * math.fsum(ends) / len(ends))


def test_a_control_that_is_not_registered_here_is_not_drawn_as_regulation(study: StudyResults) -> None:
    rows = [dataclasses.replace(row, control="mine") if row.control == "shuffled" else row for row in study.trials]
    found = only(with_trials(study, rows), "learning-curves")["learning-curves"]
    mine, regulation = (next(trace for trace in found.figure.data if trace.name == name) for name in ("mine", "regulation"))
    assert (mine.line.color, regulation.line.dash) == ("#7f7f7f", "solid")
    assert mine.line.dash != "solid"


def test_a_learned_balance_moves(study: StudyResults, figures: dict[str, Figure]) -> None:
    lines = traces(figures["balance-over-epochs"], mode="lines")
    assert len(lines) == 50
    assert sum(trace.line.width == 3 for trace in lines) == 2
    assert all(abs(trace.y[-1] - OPTIMUM) <= abs(trace.y[0] - OPTIMUM) for trace in lines)
    assert "best of the search from" in figures["balance-over-epochs"].caption


def test_a_balance_for_each_image_has_a_band(written: Written) -> None:
    trial = dataclasses.replace(made_up_config().trial, regulation=RegulationConfig(kind="dynamic", epochs=4))
    study = written(trial=trial)
    epochs = [
        dataclasses.replace(row, measured_balance_std=0.1) if row.measured_balance is not None else row for row in study.epochs
    ]
    found = only(dataclasses.replace(study, epochs=tuple(epochs)), "balance-over-epochs")["balance-over-epochs"]
    assert len(traces(found, fill="toself")) == 2
    assert "Band" in found.caption


def test_costs_add_up_to_the_records(study: StudyResults, figures: dict[str, Figure]) -> None:
    spent = {what: math.fsum(by_backbone.values()) for what, by_backbone in costs(study).items()}
    assert spent["pre-training, paid"] == pytest.approx(math.fsum(row.pretraining_seconds for row in study.trials))
    for status in ("finished", "pruned", "failed"):
        seconds = math.fsum(row.regulation_seconds for row in study.trials if row.status == status)
        assert spent[f"regulation, {status}"] == pytest.approx(seconds)
    assert spent["waiting"] == pytest.approx(math.fsum(run.waiting_slot_seconds for run in study.runs))
    assert spent["pre-training, saved"] == pytest.approx(device_time(study.trials).reused)
    assert "Sharing saved" in figures["cost"].caption
    assert "confirmation" in figures["cost"].caption


def test_no_finished_trial(written: Written) -> None:
    study = written()
    found = named(with_trials(study, [row for row in study.trials if row.status != "finished"]))
    assert set(found) == {"cost"}
    drawn, reasons = draw_figures(with_trials(study, []))
    assert drawn == []
    assert len(reasons) == len(ALL)
    assert all(reason.endswith(".") for reason in reasons)


@pytest.mark.parametrize(("num_trials", "said"), [(1, "1 trial"), (2, "2 trials")])
def test_one_or_two_trials_of_a_search_are_not_drawn(written: Written, num_trials: int, said: str) -> None:
    drawn, reasons = draw_figures(written(num_trials=num_trials, controls=()))
    assert not {figure.section for figure in drawn} & {"response", "search"}
    assert f"{said} of the search finished: no history of it, which takes 3." in reasons


def test_few_trials_have_no_curve(written: Written) -> None:
    study = written(num_trials=3, controls=(), search_space={"regulation.balance": Float(0.05, 0.95)})
    found = named(study)
    assert not {"gains", "accuracy-by-both", "importances"} & set(found)
    assert "No curve" in found["accuracy-by-balance"].caption
    assert "3 finished trials of" in found["accuracy-by-balance"].caption


def test_one_backbone_that_is_not_searched(written: Written) -> None:
    space = {"regulation.balance": Float(0.05, 0.95), "pretraining.epochs": Int(2, 32, log=True)}
    found = named(written(search_space=space))
    assert list(found) == [name for name in OF_RECORDS if name != "importances"], "of few trials"
    assert len(traces(found["accuracy-by-both"], type="contour")) == 1


def test_no_controls_and_no_epochs(written: Written) -> None:
    study = written(controls=())
    found = named(dataclasses.replace(study, epochs=(), runs=()))
    assert not {"gains", "learning-curves", "balance-over-epochs"} & set(found)
    assert not traces(found["accuracy-by-balance"], line_dash="dash")


def test_a_balance_that_is_not_searched_is_said(written: Written) -> None:
    study = written(search_space={"backbone": Choice(("test_resnet", "test_vit")), "pretraining.epochs": Int(2, 32, log=True)})
    assert "The balance was not searched: no curve of accuracy against it." in draw_figures(study)[1]
    assert {"accuracy-by-balance", "accuracy-by-both"}.isdisjoint(named(study))


@pytest.mark.usefixtures("few_permutations")
@pytest.mark.parametrize(
    ("objectives", "title"),
    [
        ((Objective(), Objective(metric="device_seconds", mode="min")), "validation accuracy, %"),
        ((Objective(metric="val_loss", mode="min"),), "validation loss"),
    ],
)
def test_other_objectives(written: Written, objectives: tuple[Objective, ...], title: str) -> None:
    space = {"regulation.balance": Float(0.05, 0.95), "pretraining.epochs": Int(2, 32, log=True)}
    found = named(written(objectives=objectives, num_trials=40, search_space=space))
    assert list(found) == OF_RECORDS
    assert found["optimization-history"].figure.layout.yaxis.title.text == title
    assert found["accuracy-by-balance"].figure.layout.yaxis.title.text == "validation accuracy, %"


def test_values_outside_of_a_range_that_was_changed_since(written: Written) -> None:
    study = written()
    found = named(searched_over(study, {"regulation.balance": Float(0.05, 0.5)}))
    assert {"optimization-history", "parallel-coordinates", "slices", "accuracy-by-balance"} <= set(found)


def test_a_search_space_that_no_trial_knows(written: Written) -> None:
    study = written()
    found = named(searched_over(study, {"drop_path": Float(0.0, 0.5)}))
    assert not {"importances", "parallel-coordinates", "slices"} & set(found)


def test_accuracies_that_are_not_numbers_are_left_out(written: Written) -> None:
    study = written()
    rows = [dataclasses.replace(row, val_accuracy=math.nan) if row.number == 0 else row for row in study.trials]
    assert "9 finished trials" in named(with_trials(study, rows))["accuracy-by-balance"].caption


def test_two_studies_side_by_side(study: StudyResults, written: Written) -> None:
    other = written(name="other", helps=0.0)
    found = {figure.name: figure for figure in compare_studies({"made-up": study, "other": other})}
    assert list(found) == ["compared-gains", "compared-accuracies", "compared-balance", "compared-pre-training-length"]
    assert [trace.name for trace in found["compared-gains"].figure.data if trace.showlegend is None] == ["made-up", "other"]
    assert "no complete confirmation" in found["compared-gains"].caption
    confirmed = next(trace for trace in found["compared-accuracies"].figure.data if trace.name == "made-up, confirmed")
    means = [100 * row.accuracy.mean for row in study.confirmed if row.control == "regulated"]
    assert list(confirmed.x) == means
    assert {trace.name for trace in found["compared-balance"].figure.data if trace.showlegend} == {"made-up", "other"}


def test_studies_that_have_nothing_in_common(written: Written) -> None:
    empty = with_trials(written(), [])
    assert compare_studies({"one": empty, "other": empty}) == []
