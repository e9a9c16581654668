"""docs/which-algorithm.md says what the files in results/ say."""

import json
import re

import pytest

from fedddpm_app.compare.publish import with_section
from fedddpm_app.config.reference import list_keys
from tests.conftest import ROOT
from website.choosing import BEGIN, END, section

PAGE = ROOT / "docs" / "which-algorithm.md"
RESULTS = ROOT / "results"
GRIDS = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def test_the_tables_are_those_of_the_results():
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_section(text, section(RESULTS), BEGIN, END), "run `make results-table`"


def test_the_text_around_them_has_no_measured_number():
    text = PAGE.read_text(encoding="utf-8")
    around = text.partition(BEGIN)[0] + text.partition(END)[2]
    assert not re.search(r"\d\.\d", around)


def test_what_has_not_been_measured_is_in_no_file():
    defaults = {key.name: key.default for key in list_keys()}
    settings = [
        defaults | grid["grid"]["base"] | condition | row
        for grid in GRIDS
        for condition in grid["grid"]["conditions"].values()
        for row in grid["grid"]["rows"].values()
    ]
    assert max(each["image-size"] for each in settings) == 16
    assert max(each["num-clients"] for each in settings) == 8
    assert {each["image-channels"] for each in settings} == {1}
    assert {each["class-conditional"] for each in settings} == {False}


@pytest.fixture
def grid(tmp_path):
    """Return a function that writes a grid of one row whose difference to the reference is given."""

    def write(low, high, n=3, better="lower", sweep=None, control=False):
        reference = f"{sweep['key']} = {sweep['reference']}" if sweep else "base"
        difference = {"mean": (low + high) / 2, "low": low, "high": high, "n": n}
        differences = {reference: difference, "control": {"mean": 0.0, "low": -1.0, "high": 1.0, "n": n}}
        metrics = {"fd": {"mean": 5.0, "sd": 1.0, "n": n, "differences": differences}}
        plain = {"condition": "iid", "up_mb": 1.0, "n": n}
        results = {
            "name": "toy",
            "title": "",
            "reference": "base",
            "also_against": ["control"] * control,
            "seeds": [0, 1, 2],
            "match": "rounds",
            "metrics": ["fd"],
            "measured": {"fd": {"better": better}},
            "grid": {
                "base": {"dataset": "digits"},
                "conditions": {"iid": {"partition": "iid"}},
                "rows": {"base": {}, "mine": {}},
                "sweep": sweep,
            },
            "cells": [],
            "settings": [
                {
                    "label": "base",
                    **plain,
                    "n": n,
                    "metrics": {"fd": {"mean": 6.0, "sd": 1.0, "n": n, "differences": {}}},
                },
                {"label": "mine", **plain, "n": n, "metrics": metrics},
                *[{"label": "control", **plain, "metrics": {"fd": metrics["fd"] | {"differences": {}}}}] * control,
            ],
        }
        (tmp_path / "toy.json").write_text(json.dumps(results))
        return section(tmp_path)

    return write


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(-3.0, -1.0, "**lower**: `mine`"), (1.0, 3.0, "higher: `mine`"), (-1.0, 2.0, "no difference shown: `mine`")],
)
def test_a_statement_follows_from_the_interval(grid, low, high, says):
    assert f"- iid: {says}." in grid(low, high)


def test_the_other_rows_of_comparison_have_a_list_of_their_own(grid):
    assert "\n\nAgainst `control`:\n\n- iid: no difference shown: `mine`." in grid(-3.0, -1.0, control=True)
    assert "Against" not in grid(-3.0, -1.0).partition(BEGIN)[2]


def test_the_better_side_is_that_of_the_metric(grid):
    text = grid(-3.0, -1.0, better="higher")
    assert "; higher is better." in text
    assert "- iid: lower: `mine`." in text


def test_the_lines_of_a_sweep_are_compared_with_its_reference(grid):
    text = grid(-3.0, -1.0, sweep={"key": "num-clients", "reference": 5})
    assert "- iid: **lower**: `mine`." in text
    assert "Data: `digits`; iid is" in text, "the number of clients is swept"


def test_two_seeds_allow_no_statement(grid):
    text = grid(-3.0, -1.0, n=2)
    assert "`mine`" not in text
    assert "Grids without a statement" in text
