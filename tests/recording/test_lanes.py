"""The picture of the provenance, also of odd runs."""

import math

import pytest

from fedddpm_app.recording import lanes
from fedddpm_app.recording.lanes import Model, plot_provenance

pytestmark = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")

FIRST, SECOND = Model("a", 0, 1, 1.0, ("start",), 5.0), Model("b", 3, 1, 2.0, ("a", "start"), 2.0)


def drawn(tmp_path, *models, run="run"):
    path = tmp_path / "plots" / "provenance.png"
    plot_provenance(models, path, "value", run)
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "models",
    [
        [FIRST],
        [FIRST, SECOND],
        [FIRST._replace(value=math.nan), SECOND],
        [FIRST._replace(value=0.0), SECOND._replace(value=1e9)],
        [FIRST._replace(time=0.0), SECOND._replace(time=0.0)],
        [Model(str(k), k % 40, k // 40 + 1, 1.0 + k, (str(k - 40),), 1000 / (k + 1)) for k in range(160)],
    ],
    ids=["one", "two peers", "no vote", "far values", "no times", "many"],
)
def test_any_provenance_is_drawn_alike_twice_and_without_warnings(tmp_path, models):
    assert drawn(tmp_path, *models) == drawn(tmp_path, *models)


def test_values_and_parents_are_in_the_picture(tmp_path):
    picture = drawn(tmp_path, FIRST, SECOND)
    assert picture != drawn(tmp_path, FIRST, SECOND._replace(value=3.0))
    assert picture != drawn(tmp_path, FIRST, SECOND._replace(parents=("a",)))
    assert picture != drawn(tmp_path, FIRST, SECOND._replace(parents=("start",)))


def test_times_that_do_not_rise_give_way_to_the_order(tmp_path):
    later = FIRST._replace(digest="c", number=2)
    stuck = drawn(tmp_path, FIRST, SECOND, later)
    assert stuck == drawn(tmp_path, FIRST, SECOND._replace(time=90.0), later)
    assert stuck != drawn(tmp_path, FIRST, SECOND, later._replace(time=3.0))
    assert drawn(tmp_path, FIRST, SECOND) != drawn(tmp_path, FIRST, SECOND._replace(time=90.0))


def test_arrows_that_are_left_out_are_counted_in_the_title(tmp_path, monkeypatch):
    all_arrows = drawn(tmp_path, FIRST, SECOND)
    monkeypatch.setattr(lanes, "_MAX_ARROWS", 2)
    assert lanes._title([FIRST, SECOND], [0, 3], "").endswith("the first 2 of 3 arrows from each parent")
    assert all_arrows != drawn(tmp_path, FIRST, SECOND)
