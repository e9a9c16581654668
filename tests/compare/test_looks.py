"""The looks of a grid's rows: the same in every plot, and for three rows in every grid."""

from contextlib import contextmanager

import pytest

from fedddpm_app.compare.looks import looks_of, row_looks
from fedddpm_app.compare.plots import plot_claim
from fedddpm_app.recording.style import open_figure

MANY = ["fedprox", "fedavg", "fedddpm", *(f"row-{k}" for k in range(20)), "fedddpm-plus"]


def results(rows, shown=None, values=((),)):
    """Results with a line per row and value of a sweep."""
    settings = [
        {"row": row, "label": f"{row}{v or ''}", "sweep": {}, "condition": "iid", "metrics": {}}
        for row in shown or rows
        for v, _ in enumerate(values)
    ]
    return {"grid": {"rows": dict.fromkeys(rows)}, "settings": settings, "reference": rows[0]}


def test_every_line_has_a_look_of_its_own_also_in_grey():
    looks = looks_of(results(MANY))
    assert len(set(looks.values())) == len(MANY)
    few = looks_of(results(MANY[:9])).values()
    assert len({look.marker for look in few}) == len({look.color for look in few}) == 9
    swept = looks_of(results(["fedavg"], values=((), ())))
    assert len({(look.marker, look.linestyle) for look in swept.values()}) == 2
    assert len({look.color for look in swept.values()}) == 1


def test_a_row_looks_the_same_whichever_rows_are_shown():
    every = looks_of(results(MANY))
    assert looks_of(results(MANY, ["row-3", "fedddpm"])).items() <= every.items()
    assert row_looks(results(MANY, ["row-7"]))["row-7"] == every["row-7"]


@pytest.mark.parametrize("row", ["fedavg", "fedddpm", "fedddpm-plus"])
def test_three_rows_look_the_same_in_every_grid(row):
    looks = [looks_of(results(rows)) for rows in (MANY, [row], ["full", row])]
    assert looks[0][row] == looks[1][row] == looks[2][row]
    assert looks[2]["full"].color != looks[2][row].color


def test_a_wide_interval_does_not_squeeze_the_claim(tmp_path, monkeypatch):
    """An interval that reaches below zero leaves the logarithmic axis as it is for the values."""
    shown = results(["fedavg", "other"]) | {"title": "", "name": "g", "measured": {}}
    shown["cells"] = [
        {"label": label, "condition": "iid", "metrics": {"fd": {"value": value}}}
        for label, value in (("fedavg", 1.0), ("other", 90.0))
    ]
    monkeypatch.setattr("fedddpm_app.compare.plots.limits_of", lambda *_: [-200.0, 400.0])
    figures = []

    @contextmanager
    def keeping(*arguments):
        with open_figure(*arguments) as figure:
            figures.append(figure)
            yield figure

    monkeypatch.setattr("fedddpm_app.compare.plots.open_figure", keeping)
    plot_claim(shown, "fd", tmp_path / "claim.png")
    assert figures[0].axes[0].get_xlim() == (pytest.approx(1 / 1.3), pytest.approx(117))
