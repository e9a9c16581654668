"""The report of a comparison: its tables, statements and curves are those of the published results."""

import json
from pathlib import Path

import pytest

from fedddpm_app.compare.table import labels_of, sentences_of
from fedddpm_app.config import ConfigError
from fedddpm_app.report.blocks import Chart, Table, Text
from fedddpm_app.report.comparison import comparison_page
from fedddpm_app.report.saving import render
from tests.report.conftest import ATTACK, change

pytestmark = pytest.mark.usefixtures("without_library")


def test_has_the_tables_statements_and_curves(comparison: Path) -> None:
    results = json.loads((comparison / "results.json").read_text())
    page = comparison_page(comparison)
    blocks = [block for section in page.sections for block in section.blocks]
    statements = [line for block in blocks if isinstance(block, Text) for line in block.paragraphs]
    assert set(sentences_of(results, "fd-classifier")) <= set(statements)
    table = next(b for b in blocks if isinstance(b, Table) and b.caption.startswith("fd-classifier"))
    assert [row[0] for row in table.rows] == labels_of(results)
    curves = next(section for section in page.sections if section.name == "curves").blocks
    assert [chart.table.rows[0][5] for chart in curves if "fd" in chart.title] == ["9.5"]
    assert {row[1] for row in curves[0].table.rows} == {"1", "2"}
    assert {row[2] for row in curves[0].table.rows} == {"10", "20"}  # gradient steps add up
    claim = next(b for b in blocks if isinstance(b, Chart) and b.title == "fd-classifier: iid")
    assert {row[0] for row in claim.table.rows} <= set(labels_of(results))
    floors = [row["x"] for row in claim.spec["layer"][0]["data"]["values"] if row["label"] == "floor"]
    assert claim.spec["layer"][0]["encoding"]["x"]["scale"]["domain"][0] < floors[0]  # the floor is in the plot
    whole = all(cell["status"] == "completed" for cell in results["cells"])
    assert page.status == ("completed" if whole else "incomplete")
    results["cells"][0]["status"] = "failed"
    change(comparison / "results.json", **results)
    assert comparison_page(comparison).status == "incomplete"


def test_names_lead_nowhere_and_texts_are_data(comparison: Path, tmp_path: Path) -> None:
    results = json.loads((comparison / "results.json").read_text())
    outside = tmp_path / "outside" / "iid" / "seed-10"
    outside.mkdir(parents=True)
    inside = next(comparison.rglob("stats.jsonl"))
    (outside / "stats.jsonl").write_bytes(inside.read_bytes())
    (outside / "summary.json").write_bytes((inside.parent / "summary.json").read_bytes())
    for each in [*results["settings"], *results["cells"]]:
        each.update(row="../outside", condition="iid") if each["row"] == "fedavg" else None
    results["grid"]["rows"]["../outside"] = {}
    results["settings"][0]["label"] = results["cells"][0]["label"] = ATTACK
    change(comparison / "results.json", **(results | {"title": ATTACK}))
    page = comparison_page(comparison)
    assert not next(section for section in page.sections if section.name == "curves").blocks
    assert ATTACK not in render(page)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"metrics": 1, "measured": {}, "cells": []}'])
def test_damaged_results_are_refused(comparison: Path, text: str) -> None:
    (comparison / "results.json").write_text(text)
    with pytest.raises(ConfigError, match=r"results\.json cannot be read"):
        comparison_page(comparison)
