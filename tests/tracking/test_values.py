"""The points that trackers get of a line."""

import math

import pytest

from fedddpm_app.tracking import points_of_line, points_of_summary


def test_a_round_gives_its_finite_numbers_under_their_keys():
    line = {"phase": "round", "round": 3, "train/loss": 0.5, "n": 2, "cloud/merged": True, "plus/verdict": "correct"}
    line |= {"eval/loss": math.nan, "a": None, "b": -math.inf, "clients": [0, 1], "train/client_loss": {"0": 0.5}}
    line |= {"huge": 10**400}
    assert points_of_line(line) == (3, {"train/loss": 0.5, "n": 2.0, "cloud/merged": 1.0})


def test_a_metric_gives_its_value_and_the_numbers_beside_it():
    metric = {"name": "fid", "value": 2.5, "std": None, "floor": 1, "floor_std": 0.1, "n": 10, "steps": 5, "note": ""}
    line = {"phase": "round", "round": 1, "eval/fid": 2.5, "eval/metrics": [metric, "?", {"value": 1}]}
    wanted = {"fid": 2.5, "fid_floor": 1.0, "fid_floor_std": 0.1, "fid_n": 10.0}
    assert points_of_line(line) == (1, {f"eval/{name}": value for name, value in wanted.items()})
    summary = {"status": "completed", "eval/loss": 0.5, "metrics": [metric]}
    of_metric = {f"summary/{name}": value for name, value in wanted.items()}
    assert points_of_summary(summary) == {"summary/eval/loss": 0.5, **of_metric}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ({"phase": "data", "data/num_unassigned": 0, "mem": 1}, (0, {"data/num_unassigned": 0.0, "data/mem": 1.0})),
        ({"phase": "initial", "round": 0, "eval/loss": 1}, (0, {"eval/loss": 1.0})),
        ({"phase": "pretrain", "round": 2, "comm/up_mb": 1}, (2, {"pretrain/comm/up_mb": 1.0})),
        (
            {"phase": "abandoned", "round": 2, "attempt": 3, "comm/up_mb": 1},
            (2, {"abandoned-3/comm/up_mb": 1.0, "abandoned-3/attempt": 3.0}),
        ),
    ],
    ids=lambda value: value["phase"] if isinstance(value, dict) else "",
)
def test_other_phases_are_apart_from_the_rounds(line, wanted):
    assert points_of_line(line) == wanted


@pytest.mark.slow
def test_no_two_lines_of_a_run_give_one_point_twice(shared_run):
    run = shared_run(num_rounds=1)
    places = [(name, *points_of_line(line)[:1]) for line in run.stats for name in points_of_line(line)[1]]
    assert len(places) == len(set(places)) > 30
