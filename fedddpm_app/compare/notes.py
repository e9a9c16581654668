"""Sentences about a grid's results: how they were measured, the cost that is equal, and the cells that are unequal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedddpm_app.compare.numbers import range_of

Results = Mapping[str, Any]
LEFT_OUT = "left_out"  # of a cell: clients by phase
DIVERGED = "evaluation"  # as a phase there: clients whose own models generate no finite images
MARK = "†"  # of a mean with a caveat
_FAR = 0.02  # a cost that is further from the budget is named


def cost_note(results: Results) -> str:
    """Return the reference, the seeds, and the cost that is equal for all rows."""
    seeds, match = results["seeds"], results["match"]
    own = "".join(f" (for its own lines: {name})" for name in reference_of_sweep(results))
    named = f"Reference: {results['reference']}{own}. Seeds: {', '.join(map(str, seeds))}."
    if match == "rounds":
        steps = range_of([each["steps"] for each in results["settings"]])
        return f"{named} The numbers of rounds are those of the grid file. Gradient steps of a run: {steps}."
    budgets = [each["expected"]["budget"] for each in results["settings"]]
    unit = "gradient steps" if match == "steps" else "models exchanged (up and down)"
    rest = " An image that only goes forward counts 1/3 of a training image." if match == "steps" else ""
    return f"{named} All rows have a budget of {range_of(budgets)} {unit}.{rest}{far_note(results)}"


def far_note(results: Results) -> str:
    """Return a sentence, after a space, with the settings whose cost is far from the budget; empty without any."""
    far = {
        f"{each['label']} ({each['condition']}: {share:.0%})": None
        for each in results["settings"]
        if (share := share_of_budget(results, each)) is not None
    }
    return f" Not within 2 % of it: {', '.join(far)}." if far else ""


def share_of_budget(results: Results, setting: Mapping[str, Any]) -> float | None:
    """Return a setting's cost, as counted (models: as expected), as a share of the budget if it is far from it."""
    budget, steps = setting["expected"]["budget"], setting["steps"]
    if results["match"] == "bytes":
        steps = setting["expected"]["models_up"] + setting["expected"]["models_down"]
    if results["match"] == "rounds" or not budget or steps is None or not math.isfinite(steps):
        return None
    return steps / budget if abs(steps / budget - 1.0) > _FAR else None


def measured_note(results: Results, metric: str) -> str:
    """Return how a metric was measured."""
    about = results["measured"].get(metric)
    if not about:
        return "No cell has this metric."
    better = f" {about['better'].capitalize()} is better." if about["better"] else ""
    if is_attack(results, metric):
        return (
            f"Area under the ROC curve of an attack by {about['extractor']}, which separates {about['n']:,} training "
            f"images from {about['reference_n']:,} others ({about['reference']}).{better} Floor, that of guesses: 0.5."
        )
    found = [each["metrics"][metric] for each in results["settings"] if metric in each["metrics"]]
    floors = range_of([each["floor"] for each in found])
    spread = range_of([each.get("floor_std") for each in found])
    sizes = [about.get(key) for key in ("floor_n", "floor_reference_n")]
    of = " against ".join(f"{size:,}" for size in sizes if size)
    others = "; ".join(_generated(each) for each in about["others"])
    others = f" Other cells: {others}." if others else ""
    return (
        f"{_generated(about)} against "
        f"{about['reference_n']:,} of the {about['reference']} split (digest {about['reference_digest']}), extractor "
        f"{about['extractor']} (digest {about['extractor_digest']}).{better} Floor, the same metric of "
        f"{of + ' ' if of else ''}real images: {floors}{f' ± {spread}' if spread != '–' else ''}.{others}"
    )


def is_attack(results: Results, metric: str) -> bool:
    """Return whether a metric is the AUC of an attack, which compares no generated images, and not better below 0.5."""
    return bool(results["measured"].get(metric, {}).get("sampler") == "")


def caveat_note(results: Results, metrics: Sequence[str]) -> str:
    """Return a sentence for each caveat about the values of some metrics, with the settings; empty without any."""
    found: dict[str, dict[str, None]] = {}
    for each in results["settings"]:
        for metric in metrics:
            for caveat, seeds in each["metrics"].get(metric, {}).get("caveats", {}).items():
                where = f"{each['label']} ({each['condition']}: {seeds} of {each['n']} seeds)"
                found.setdefault(caveat, {})[where] = None
    return " ".join(f"{MARK} {caveat[0].upper()}{caveat[1:]}: {', '.join(where)}." for caveat, where in found.items())


def _generated(about: Mapping[str, Any]) -> str:
    return f"{about['n']:,} generated images ({about['sampler']}, {about['steps']} steps)"


def clients_left_out(results: Results) -> list[str]:
    """Return a sentence for each cell that left clients out of a phase, for which the comparison may be unequal."""
    return [
        f"{cell_name(cell)}: " + ", ".join(f"{phase} without {', '.join(names)}" for phase, names in left_out.items())
        for cell in results["cells"]
        if (left_out := cell.get(LEFT_OUT))
    ]


def cell_name(cell: Mapping[str, Any]) -> str:
    """Return a cell's line, condition and seed."""
    return f"{cell['label']}, {cell['condition']}, seed {cell['seed']}"


def reference_of_sweep(results: Results) -> list[str]:
    """Return the name of the sweep's line that the others of its row are compared with, if there is one."""
    sweep = results["grid"]["sweep"] or {}
    return [] if sweep.get("reference") is None else [f"{sweep['key']} = {sweep['reference']}"]
