"""The charts of a sweep: lines over the values of its key."""

import pytest

from fedddpm_app.report.sweep import sweep_charts


def setting(row, value, mean, low=None, high=None, condition="iid"):
    sweep = {} if value is None else {"num-clients": value}
    metrics = {"fd": {"mean": mean, "low": low, "high": high, "floor": 1.5, "n": 3}} if mean else {}
    return {"row": row, "label": f"{row} {value}", "sweep": sweep, "condition": condition, "metrics": metrics}


@pytest.fixture
def results():
    """The reference has a line per value, kd-only misses one, and centralized does not use the key."""
    settings = [
        *(setting("fedavg", value, mean, mean - 1, mean + 1) for value, mean in ((2, 10.0), (5, 20.0), (50, 30.0))),
        *(setting("kd-only", value, mean) for value, mean in ((2, 5.0), (5, None), (50, 8.0))),
        setting("centralized", None, 3.0),
        setting("fedavg", 2, None, condition="skew"),
    ]
    rows = {name: {} for name in ("fedavg", "kd-only", "centralized")}
    grid = {"sweep": {"key": "num-clients", "values": [2, 5, 50]}, "rows": rows}
    return {"reference": "fedavg", "grid": grid, "settings": settings}


def test_lines_go_over_the_values_and_a_row_without_the_key_is_level(results):
    (chart,) = sweep_charts(results, "fd")  # "skew" has no values
    assert chart.title == "fd over num-clients: iid"
    assert chart.table.rows == [
        *(["fedavg", "2", "10", "9", "11"], ["fedavg", "5", "20", "19", "21"], ["fedavg", "50", "30", "29", "31"]),
        *(["kd-only", "2", "5", "–", "–"], ["kd-only", "50", "8", "–", "–"]),
        *(["centralized", value, "3", "–", "–"] for value in ("2", "5", "50")),
    ]
    encoding = chart.spec["layer"][1]["encoding"]
    assert (encoding["x"]["type"], encoding["x"]["scale"]["type"], encoding["x"]["axis"]["values"]) == (
        *("quantitative", "log"),
        [2, 5, 50],
    )
    assert encoding["strokeDash"]["scale"]["range"] == [[1, 0], [1, 0], [6, 4]]


def test_values_that_are_no_numbers_have_places_in_their_order(results):
    results["grid"]["sweep"]["values"] = ["pixels", "none"]
    for each, value in zip(results["settings"][:2], ("pixels", "none"), strict=True):
        each["sweep"] = {"num-clients": value}
    x = sweep_charts(results, "fd")[0].spec["layer"][1]["encoding"]["x"]
    assert (x["type"], x["sort"]) == ("ordinal", ["pixels", "none"])


def test_without_a_sweep_there_is_no_chart(results):
    results["grid"]["sweep"] = None
    assert sweep_charts(results, "fd") == []
