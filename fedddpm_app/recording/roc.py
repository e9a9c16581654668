"""ROC curves of attacks, on logarithmic axes: what an attacker finds almost surely is at the left."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedddpm_app.recording.style import FLOOR, LINES, MARKERS, SERIES, open_figure, plain_log_axis

_SMALLEST = 1e-3


class Curve(NamedTuple):
    """The curve of an attack on a target: false- and true-positive rates, both rising."""

    target: str
    attack: str
    false: NDArray[np.float64]
    true: NDArray[np.float64]


def plot_roc(curves: Sequence[Curve], path: Path, run: str) -> None:
    """Plot curves into a PNG, and the diagonal of a guess; a target has a colour and a marker, an attack a dash."""
    targets, attacks = ([*dict.fromkeys(getattr(curve, key) for curve in curves)] for key in ("target", "attack"))
    height = max(4.2, 1.5 + 0.2 * len(curves))
    with open_figure(path, f"{run}: membership inference", 9.5, height) as figure:
        axes = figure.subplots()
        line = np.geomspace(_SMALLEST, 1)
        axes.plot(line, line, color=FLOOR, linewidth=0.8, label="a guess")
        for curve in curves:
            target, attack = targets.index(curve.target), attacks.index(curve.attack)
            axes.plot(
                np.maximum(curve.false, _SMALLEST),
                np.maximum(curve.true, _SMALLEST),
                color=SERIES[target % len(SERIES)],
                linestyle=LINES[attack % len(LINES)],
                marker=MARKERS[target % len(MARKERS)],
                markersize=4,
                markevery=0.15,  # of the length of the diagonal of the axes
                linewidth=1.2,
                drawstyle="steps-post",
                label=f"{curve.target}: {curve.attack}",
            )
        plain_log_axis(axes, "x")
        plain_log_axis(axes, "y")
        axes.set(xlim=(_SMALLEST, 1), ylim=(_SMALLEST, 1.1))
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7, frameon=False)
