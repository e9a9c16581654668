"""The tables of a grid in Markdown, and the sentences that follow from its intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedddpm_app.compare.notes import (
    MARK,
    Results,
    caveat_note,
    cell_name,
    clients_left_out,
    cost_note,
    is_attack,
    measured_note,
    reference_of_sweep,
    share_of_budget,
)
from fedddpm_app.compare.numbers import number, range_of, signed
from fedddpm_app.compare.statistics import CONFIDENCE, holm, p_value
from fedddpm_app.config import one_line
from fedddpm_app.limits import LONGEST_TEXT

_MB = "MB up, down"
_COSTS = ("gradient steps", "models exchanged", _MB, "minutes")
_NO_SETTING: Results = {"metrics": {}}
_WORDS = ("lower", "higher")
_UNEQUAL = (*_WORDS, "unclear")
_PAST_GUESSING = ", below guesses"  # of a side
LEAST_SEEDS = 3  # of a statement


def table_of(results: Results, metric: str, *, with_costs: bool = True) -> str:
    """Return a Markdown table of a metric: a row per line of the grid, a column per condition, and the costs."""
    heading, rows = cells_of(results, metric, with_costs=with_costs)
    return _markdown(heading, [[_escaped(label), *cells] for label, *cells in rows])


def cells_of(results: Results, metric: str, *, with_costs: bool = True) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows of a metric's table as texts."""
    conditions = conditions_of(results)
    heading = ["", *conditions, *(_COSTS if with_costs else ())]
    rows = []
    for label, settings in _by_label(results).items():
        cells = [_cell(settings.get(condition), metric, results) for condition in conditions]
        rows.append([label, *cells, *(_costs(list(settings.values())) if with_costs else ())])
    return heading, rows


def means_of(results: Results) -> str:
    """Return a Markdown table of the means of all metrics but the first, and of the bytes; empty for one metric."""
    metrics, conditions = results["metrics"][1:], conditions_of(results)
    if not metrics:
        return ""
    columns = [(metric, condition) for metric in metrics for condition in conditions]
    heading = ["means over complete seeds", *(f"{metric}, {condition}" for metric, condition in columns), _MB]
    rows = []
    for label, settings in _by_label(results).items():
        means = [settings.get(condition, _NO_SETTING)["metrics"].get(metric) for metric, condition in columns]
        cells = [number(each["mean"]) + _marked(each, results) if each and each["n"] else "–" for each in means]
        rows.append([_escaped(label), *cells, _costs(list(settings.values()))[_COSTS.index(_MB)]])
    return _markdown(heading, rows)


def _by_label(results: Results) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return the settings of each line by their condition."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {label: {} for label in labels_of(results)}
    for each in results["settings"]:
        found[each["label"]][each["condition"]] = each
    return found


def _markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def sentences_of(results: Results, metric: str) -> list[str]:
    """Return the sentences that follow from the intervals of a metric's differences to the reference.

    A difference of fewer than 3 seeds, or one that lacks seeds of the grid (a run that diverged has no metrics), allows
    no statement. A run that did not cost the budget is named with its share.
    """
    names = (results["reference"], *results["also_against"], *reference_of_sweep(results))
    found = [
        sentence
        for name in names
        for sentence in (*_sentences_against(results, metric, name), *correction_note(results, metric, name))
    ]
    pairs = {
        (each["condition"], frozenset((each["label"], name)))
        for name in names
        for each, difference in _differences(results, metric, name)
        if side_in(difference, results) in _UNEQUAL
    }
    expected = f"{len(pairs) * (1 - CONFIDENCE):.1f} of these {len(pairs)} intervals"
    by_chance = f"If no row differed, {expected} would exclude zero by chance."
    return [*found, *([by_chance] if len(pairs) > 1 else [])]


def _differences(results: Results, metric: str, reference: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the settings that are compared with a line, by its name there, each with its difference."""
    found = (
        (each, each["metrics"].get(metric, {}).get("differences", {}).get(reference)) for each in results["settings"]
    )
    return [(setting, difference) for setting, difference in found if difference and difference["n"]]


def correction_note(results: Results, metric: str, reference: str) -> list[str]:
    """Return a sentence about the differences to a line that Holm's correction for their number does not leave."""
    family = [each for each in _differences(results, metric, reference) if side_in(each[1], results) in _UNEQUAL]
    kept = holm([p_value(found["mean"], found["low"], found["n"]) for _, found in family])
    shown = [side_in(found, results) in _WORDS for _, found in family]
    if len(family) < 2 or not any(shown):
        return []
    lost: dict[str, list[str]] = {}
    for (setting, _), is_kept, is_shown in zip(family, kept, shown, strict=True):
        if is_shown and not is_kept:
            lost.setdefault(setting["label"], []).append(setting["condition"])
    of = f"the {len(family)} differences to {reference}"
    start = f"With Holm's correction for {of}, {sum(kept)} of the {sum(shown)} shown remain"
    return [f"{start}; these do not: {_listed(lost)}." if lost else f"{start}."]


def _listed(lines: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{label} ({', '.join(where)})" for label, where in lines.items())


def _sentences_against(results: Results, metric: str, reference: str) -> list[str]:
    """Return the sentences that follow from the differences to a line, by its name there."""
    if reference in labels_without_cells(results):
        return [f"No statement against {reference}, because it has no complete cell."]
    starts = _starts(results["measured"].get(metric, {}).get("better", ""), metric, reference)
    sides: dict[str, dict[str, list[str]]] = {side: {} for side in starts}
    for each, difference in _differences(results, metric, reference):
        side = side_in(difference, results)
        side += _PAST_GUESSING * (side in _WORDS and _is_below_guesses(each["metrics"][metric], metric, results))
        share = share_of_budget(results, each)
        where = each["condition"] + ("" if share is None else f", at {share:.0%} of the budget")
        sides[side].setdefault(each["label"], []).append(where)
    named = {side: _listed(found) for side, found in sides.items()}
    if not any(lines for side, lines in named.items() if side != "unknown") and named["unknown"]:
        named["unknown"] = "all rows"
    return [f"{start}{named[side]}." for side, start in starts.items() if named[side]]


def _starts(better: str, metric: str, reference: str) -> dict[str, str]:
    """Return how the sentence about each side begins, in the order of the sentences."""
    verdicts = {word: f" ({'better' if word == better else 'worse'})" if better else "" for word in _WORDS}
    few = f"there are fewer than {LEAST_SEEDS} seeds, or not all have the metric"
    excluded = f"than that of {reference}, and the interval excludes zero"
    return {
        **{word: f"{metric} is {word}{verdict} {excluded}: " for word, verdict in verdicts.items()},
        **{
            word + _PAST_GUESSING: f"{metric} is {word} {excluded}, but below that of guesses, so that it is neither "
            "better nor worse: "
            for word in _WORDS
        },
        "unclear": f"No difference to {reference} is shown, because the interval contains zero: ",
        "equal": f"{metric} is that of {reference}, with every seed: ",
        "unknown": f"No statement against {reference}, because {few}: ",
    }


def _is_below_guesses(found: Mapping[str, Any], metric: str, results: Results) -> bool:
    """Return whether an attack on a setting finds less than guesses, than which nothing is better."""
    return is_attack(results, metric) and found["mean"] < found["floor"]


NOTE_ON_STATISTICS = (
    "A table has the mean ± the standard deviation over the seeds. In parentheses is the mean paired difference to the "
    "reference over the seeds that both have, with its 95 % t interval. The intervals are not corrected for the number "
    "of comparisons; a sentence names those that Holm's correction takes away. They cover the seeds alone, and not "
    "other test images, extractors or machines. Gradient steps, MB and minutes are the means of the runs' own counts. "
    "Minutes leave evaluation out; the runs of a grid share a machine. MB leave out models that are sent for "
    "evaluation alone, and models exchanged are those that the algorithm needs."
)


def page(results: Results) -> str:
    """Return ``table.md``: the tables of all metrics of a grid, and the sentences of the first."""
    metrics = results["metrics"]
    parts = [f"# {results['title'] or results['name']}", NOTE_ON_STATISTICS, cost_note(results)]
    for metric in metrics:
        parts += [f"## {metric}", measured_note(results, metric), table_of(results, metric)]
        parts += [caveat_note(results, [metric])]
        parts += ["\n".join(f"- {sentence}" for sentence in sentences_of(results, metric))]
    unfinished = [cell for cell in results["cells"] if cell["status"] != "completed"]
    if unfinished:
        parts += ["## Cells that are not complete"]
        parts += ["\n".join(f"- {cell_name(cell)}: {_reason_of(cell)}" for cell in unfinished)]
    if incomplete := clients_left_out(results):
        parts += ["## Cells without some clients", "\n".join(f"- {sentence}" for sentence in incomplete)]
    return "\n\n".join(part for part in parts if part) + "\n"


def labels_of(results: Results) -> list[str]:
    """Return the lines of the table."""
    return list(dict.fromkeys(each["label"] for each in results["settings"]))


def labels_without_cells(results: Results) -> list[str]:
    """Return the lines of the table that have no complete cell."""
    complete = {each["label"] for each in results["settings"] if each["n"]}
    return [label for label in labels_of(results) if label not in complete]


def conditions_of(results: Results) -> list[str]:
    """Return the columns of the table."""
    return list(dict.fromkeys(each["condition"] for each in results["settings"]))


def _cell(setting: Mapping[str, Any] | None, metric: str, results: Results) -> str:
    """Return a setting's mean ± deviation, its difference to the reference, and the number of seeds if some lack."""
    found = setting["metrics"].get(metric) if setting else None
    if setting is None or not found or not found["n"]:
        return "–"
    mean = found["mean"]
    text = number(mean) + (f" ± {number(found['sd'], mean)}" if found["sd"] is not None else "")
    difference = difference_of(setting, metric, results)
    if difference and difference["n"]:
        low, middle, high = (signed(difference[key], difference["mean"]) for key in ("low", "mean", "high"))
        text += f" ({middle} [{low}, {high}])" if difference["n"] > 1 else f" ({middle})"
    return text + _marked(found, results)


def difference_of(setting: Mapping[str, Any], metric: str, results: Results) -> Mapping[str, Any] | None:
    """Return the difference of a setting to the reference, or to its row's line of the sweep; None for these two."""
    differences = setting["metrics"][metric]["differences"]
    names = (results["reference"], *reference_of_sweep(results))
    return next((differences[name] for name in names if name in differences), None)


def _marked(found: Mapping[str, Any], results: Results) -> str:
    """Return the number of seeds that a mean is of, if it is not that of the grid, and the mark of a caveat."""
    seeds = len(results["seeds"])
    number_of_seeds = "" if found["n"] == seeds else f", {found['n']} of {seeds} seeds"
    return number_of_seeds + (f" {MARK}" if found.get("caveats") else "")


def _costs(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the costs of a line as texts; a range if conditions differ."""
    models = [each["expected"]["models_up"] + each["expected"]["models_down"] for each in settings]
    up, down = (range_of([each[key] for each in settings]) for key in ("up_mb", "down_mb"))
    minutes = range_of([each["seconds"] / 60 if each["seconds"] is not None else None for each in settings])
    return [range_of([each["steps"] for each in settings]), range_of(models), f"{up}, {down}", minutes]


def side_in(difference: Mapping[str, Any], results: Results) -> str:
    """Return what a difference shows; "unknown" for fewer than 3 seeds, or if it lacks seeds of the grid."""
    if not difference["n"] == len(results["seeds"]) >= LEAST_SEEDS:
        return "unknown"
    low, high = difference["low"], difference["high"]
    if low == high == 0:
        return "equal"
    return "lower" if high < 0 else "higher" if low > 0 else "unclear"


def _reason_of(cell: Mapping[str, Any]) -> str:
    """Return why a cell is not complete; a reason may quote a client, so it is code, in which no markup counts."""
    reason = one_line(str(cell.get("reason", "")), LONGEST_TEXT).replace("`", "'")
    return f"`{reason}`" if reason else str(cell["status"])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_")
