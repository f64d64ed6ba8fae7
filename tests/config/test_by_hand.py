"""Values that a person chooses for searched paths."""

from __future__ import annotations

from typing import Any

import pytest

from emoreg.config import Choice, Distribution, Float, Int, When
from emoreg.config.by_hand import check_values, parse_values
from emoreg.errors import ConfigError

SPACE: dict[str, Distribution] = {
    "backbone": Choice(("resnet18", "vit_tiny")),
    "regulation.balance": Float(0.0, 1.0),
    "drop_path": Float(0.0, 0.3, step=0.1, when=When("backbone", ("vit_tiny",))),
    "pretraining.epochs": Int(5, 80, step=5),
    "regulation.freeze_emotional": Choice((False, True)),
    "pretraining.batch_size": Choice((32, 64)),
}


@pytest.mark.parametrize(
    ("path", "given", "taken"),
    [
        ("regulation.balance", "0.3", 0.3),
        ("regulation.balance", 1, 1.0),
        ("drop_path", "0.30000000000000004", 0.3),
        ("pretraining.epochs", "15", 15),
        ("regulation.freeze_emotional", "true", True),
        ("regulation.freeze_emotional", "False", False),
        ("pretraining.batch_size", "64", 64),
        ("pretraining.batch_size", 64.0, 64),
        ("backbone", "vit_tiny", "vit_tiny"),
    ],
)
def test_a_value_is_taken_as_the_search_space_has_it(path: str, given: Any, taken: Any) -> None:
    (value,) = check_values(SPACE, {path: given}).values()
    assert (value, type(value)) == (taken, type(taken))


@pytest.mark.parametrize(
    ("path", "given", "told"),
    [
        ("regulation.balance", "1.5", r"^Choose a number in \[0, 1\]: regulation.balance must be .*, but it is '1.5'$"),
        ("regulation.balance", True, r"but it is True$"),
        ("regulation.balance", "nan", r"but it is 'nan'$"),
        ("regulation.balance", "much", r"but it is 'much'$"),
        ("drop_path", "0.15", r"^Choose a number in \[0, 0.3\] by steps of 0.1 from 0: "),
        ("pretraining.epochs", "7", r"^Choose a whole number in \[5, 80\] by steps of 5 from 5: "),
        ("pretraining.epochs", "10.5", r"but it is '10.5'$"),
        ("regulation.freeze_emotional", "1", r"^Choose one of False, True: "),
        ("pretraining.batch_size", True, r"^Choose one of 32, 64: "),
        ("backbone", "resnet50", r"^Choose one of resnet18, vit_tiny: backbone must be .*, but it is 'resnet50'$"),
        ("regulation.ballance", "0.5", r"^Name a path such as regulation.balance or .*, but it is 'regulation.ballance'$"),
    ],
)
def test_what_the_search_space_does_not_have_is_refused(path: str, given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_values(SPACE, {path: given})


def test_a_value_that_no_trial_could_have_beside_another_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^Drop drop_path, or choose another backbone: it is searched only where backbone is "
    ):
        check_values(SPACE, {"backbone": "resnet18", "drop_path": "0.1"})
    assert check_values(SPACE, {"backbone": "vit_tiny", "drop_path": "0.1"}) == {"backbone": "vit_tiny", "drop_path": 0.1}


def test_texts_are_paths_and_values() -> None:
    assert parse_values(["regulation.balance=0.3", "backbone=a=b"]) == {"regulation.balance": "0.3", "backbone": "a=b"}
    for text in ("0.3", "regulation.balance=", "=0.3"):
        with pytest.raises(ConfigError, match=r"^Write PATH=VALUE, as in regulation.balance=0.3: "):
            parse_values([text])
