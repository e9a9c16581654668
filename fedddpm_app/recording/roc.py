"""ROC curves of attacks, on logarithmic axes: what an attacker finds almost surely is at the left."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedddpm_app.recording.style import FLOOR, SERIES, open_figure, plain_log_axis

_SMALLEST = 1e-3


class Curve(NamedTuple):
    """A curve: its name, false- and true-positive rates, rising, and a number that several curves of a kind share."""

    name: str
    false: NDArray[np.float64]
    true: NDArray[np.float64]
    kind: int


def plot_roc(curves: Sequence[Curve], path: Path, run: str) -> None:
    """Plot curves into a PNG, each with its name, and the diagonal of a guess."""
    styles = ("-", "--", ":", "-.")
    height = max(4.2, 1.5 + 0.2 * len(curves))
    with open_figure(path, f"{run}: membership inference", 9.5, height) as figure:
        axes = figure.subplots()
        line = np.geomspace(_SMALLEST, 1)
        axes.plot(line, line, color=FLOOR, linewidth=0.8, label="a guess")
        kinds = sorted({curve.kind for curve in curves})
        for number, curve in enumerate(curves):
            axes.plot(
                np.maximum(curve.false, _SMALLEST),
                np.maximum(curve.true, _SMALLEST),
                color=SERIES[number % len(SERIES)],
                linestyle=styles[kinds.index(curve.kind) % len(styles)],
                linewidth=1.2,
                drawstyle="steps-post",
                label=curve.name,
            )
        plain_log_axis(axes, "x")
        plain_log_axis(axes, "y")
        axes.set(xlim=(_SMALLEST, 1), ylim=(_SMALLEST, 1.1))
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7, frameon=False)
