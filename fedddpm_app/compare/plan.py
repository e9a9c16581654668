"""The plan of a grid: every cell with its whole config, and every setting with its cost, before anything runs."""

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedddpm_app.algorithms import find_algorithm, get_algorithm
from fedddpm_app.compare.cells import Cell, Line, Setting
from fedddpm_app.compare.solved import SolvedValues
from fedddpm_app.compare.solver import solve, with_whole_number
from fedddpm_app.compare.spec import GridSpec
from fedddpm_app.config import Config, ConfigError, DataConfig, Scalar, load_config, shown
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.data.settings import read_auto
from fedddpm_app.federation.cost import Cost

RESULTS, TABLE, SOLVED = "results.json", "table.md", "solved.json"  # in the folder of a grid
_FAR = 0.02


@dataclass(frozen=True)
class Plan:
    """All cells of a grid.

    Attributes
    ----------
    spec : GridSpec
        The grid file.
    folder : Path
        The grid's folder, an absolute path.
    defaults : dict
        The app's run config.
    settings : list of Setting
        In the order of the file: rows, values, conditions.
    cells : list of Cell
        In the order of the work: all settings with the first seed, then with the second, ...
    solved : SolvedValues
        The solved values, to be saved when cells are run.
    """

    spec: GridSpec
    folder: Path
    defaults: Mapping[str, Scalar]
    settings: list[Setting]
    cells: list[Cell]
    solved: SolvedValues

    def compared_with(self, setting: Setting) -> dict[str, Setting]:
        """Return the settings that another one is compared with, by their names in its differences.

        They have its condition. A row's line is that of its value, or the row's only one. The sweep's reference is a
        line of its own row.
        """
        spec, line = self.spec, setting.line
        lines = {row: (row, line.value) for row in (spec.reference, *spec.also_against)}
        if spec.sweep and spec.sweep.reference is not None and line.value is not None:
            lines[f"{spec.sweep.key} = {spec.sweep.reference}"] = (line.row, spec.sweep.reference)
        found = {name: self._setting_of(row, value, setting.condition) for name, (row, value) in lines.items()}
        return {name: other for name, other in found.items() if other is not None and other is not setting}

    def _setting_of(self, row: str, value: Scalar | None, condition: str) -> Setting | None:
        same = [s for s in self.settings if s.line.row == row and s.condition == condition]
        return next((s for s in same if s.line.value in (None, value)), None)


def make_plan(
    spec: GridSpec,
    folder: Path,
    defaults: Mapping[str, Scalar],
    source: str,
    solved_elsewhere: Mapping[str, Any] = MappingProxyType({}),
) -> Plan:
    """Work out a grid's cells, solve for the key of each row, and check every config.

    Parameters
    ----------
    spec : GridSpec
        The grid file.
    folder : Path
        The grid's folder, an absolute path.
    defaults : mapping
        The app's run config.
    source : str
        The grid file's name, for messages.
    solved_elsewhere : mapping
        The content of the ``solved.json`` of the published grid; values of the grid's folder count more.

    Raises
    ------
    ConfigError
        With a sentence for each problem: file, row, condition, key, value, fix.
    """
    conditions = list(spec.conditions)
    solved = SolvedValues(folder / SOLVED, solved_elsewhere)
    settings = _all_settings(spec, defaults, source, solved)
    settings.sort(key=lambda s: (list(spec.rows).index(s.line.row), _place(spec, s), conditions.index(s.condition)))
    by_condition = sorted(settings, key=lambda s: conditions.index(s.condition))
    cells = [
        Cell(s, seed, folder / s.line.folder / s.condition / f"seed-{seed}")
        for seed in spec.seeds
        for s in by_condition
    ]
    return Plan(spec, folder, defaults, settings, cells, solved)


def _all_settings(spec: GridSpec, defaults: Mapping[str, Scalar], source: str, solved: SolvedValues) -> list[Setting]:
    """Return the settings of all rows, those of the reference first, because its costs may be the budgets."""
    problems: dict[str, str] = {}  # each sentence once, with the first place
    budgets: dict[tuple[str, Scalar | None], float] = {}
    found = []
    for row in sorted(spec.rows, key=lambda row: row != spec.reference):
        if problems and not budgets and spec.budget is None:
            break
        for line, condition in itertools.product(_lines(spec, row, defaults), spec.conditions):
            try:
                setting = _setting(spec, line, condition, defaults, budgets, solved)
            except ConfigError as error:
                for sentence in str(error).splitlines():
                    problems.setdefault(sentence, f"{source}: row {line.label}, condition {condition}: {sentence}")
                continue
            found.append(setting)
            if row == spec.reference:
                cost = amount_of(spec, setting.cost)
                budgets[condition, line.value] = cost
                budgets.setdefault((condition, None), cost)
    dtypes = {setting.config.transport.wire_dtype: setting.line.label for setting in found}
    if spec.match == "bytes" and len(dtypes) > 1:
        named = " and ".join(f'wire-dtype = "{dtype}" (row {label})' for dtype, label in dtypes.items())
        sentence = 'match = "bytes" counts models, which have other bytes with another dtype: use one for all rows'
        problems.setdefault(named, f"{source}: {named}: {sentence}, or another match.")
    if not problems and spec.sweep and all(setting.line.value is None for setting in found):
        raise ConfigError(
            f"{source}: sweep.key = {shown(spec.sweep.key)} has no effect in any row: sweep another key, or add a row "
            "that uses it."
        )
    if problems:
        raise ConfigError("\n".join(problems.values()))
    return found


def far_from_budget(plan: Plan) -> dict[str, float]:
    """Return the lines with a cost that is more than 2 % from their budget, and the largest relative difference."""
    found: dict[str, float] = {}
    for each in plan.settings:
        difference = amount_of(plan.spec, each.cost) / each.budget - 1 if each.budget else 0.0
        if abs(difference) > max(_FAR, abs(found.get(each.line.label, 0.0))):
            found[each.line.label] = difference
    return found


def amount_of(spec: GridSpec, cost: Cost) -> float:
    """Return a cost in the unit of the budget: models exchanged, or gradient steps."""
    return cost.models_up + cost.models_down if spec.match == "bytes" else cost.steps


def _place(spec: GridSpec, setting: Setting) -> int:
    values = spec.sweep.values if spec.sweep else []
    return values.index(setting.line.value) if setting.line.value is not None else -1


def _lines(spec: GridSpec, row: str, defaults: Mapping[str, Scalar]) -> list[Line]:
    """Return a row's lines: one, or one for each value of the sweep if its key has an effect in the row."""
    sweep = spec.sweep
    if sweep is None:
        return [Line(row)]
    keys = spec.keys_of_row(row)
    try:
        config = _load(defaults, {**spec.base, **next(iter(spec.conditions.values())), **keys})
        unused = find_algorithm(config.run.algorithm).keys_without_effect(config)
    except ConfigError:  # ``_setting`` reports it
        return [Line(row)]
    return [Line(row)] if sweep.key in unused else [Line(row, sweep.key, value) for value in sweep.values]


def _setting(
    spec: GridSpec,
    line: Line,
    condition: str,
    defaults: Mapping[str, Scalar],
    budgets: Mapping[tuple[str, Scalar | None], float],
    known: SolvedValues,
) -> Setting:
    """Return a setting, after solving for its keys, unless they were solved for earlier."""
    row = line.row
    keys: dict[str, Scalar] = {**spec.base, **spec.conditions[condition], **spec.keys_of_row(row)}
    if line.value is not None:
        keys[line.key] = line.value
    config = _load(defaults, {**keys, "seed": spec.seeds[0]})
    budget = spec.budget
    if spec.match != "rounds" and budget is None and row != spec.reference:
        budget = budgets.get((condition, line.value), budgets.get((condition, None)))
    name, wanted = (line.label, condition), spec.solved_keys(row)
    of_reference = {**spec.base, **spec.conditions[condition], **spec.keys_of_row(spec.reference)}
    basis = {"match": spec.match, **({"budget": spec.budget} if spec.budget else of_reference)}
    solved = known.find(name, keys, wanted, basis) or {}
    for key in wanted:
        solved[key] = solved.get(key) or _solve(spec, config, key, budget or 0.0)
        config = _load(defaults, {**keys, **solved, "seed": spec.seeds[0]})
    if wanted:
        known.add(name, keys, solved, basis)
    keys |= solved
    get_algorithm(config)
    cost = _mean_cost(config, tuple(spec.seeds))
    if spec.match != "rounds" and budget is None:  # the reference row itself
        budget = amount_of(spec, cost)
    return Setting(line, condition, keys, config, solved, cost, budget)


def _solve(spec: GridSpec, config: Config, key: str, budget: float) -> int:
    """Return the value of a key, with the row's ``solve`` in the message of an error."""
    seeds = tuple(spec.seeds)
    try:
        return solve(lambda value: amount_of(spec, _mean_cost(with_whole_number(config, key, value), seeds)), budget)
    except ConfigError as error:
        raise ConfigError(
            f'solve = {shown(key)}: {error}; use another key, a larger budget, cheaper phases, or solve = "".'
        ) from error


def _load(defaults: Mapping[str, Scalar], keys: Mapping[str, Scalar]) -> Config:
    values = {**defaults, **keys}
    return load_config({**values, **read_auto(values)})


def _mean_cost(config: Config, seeds: tuple[int, ...]) -> Cost:
    """Return the mean expected cost of a run over the seeds, which differ in the sizes of the clients' data."""
    algorithm = find_algorithm(config.run.algorithm)
    costs = []
    for seed in seeds:
        seeded = replace(config, run=replace(config.run, seed=seed))
        costs.append(algorithm.cost(seeded, _sizes(config.data, seed)))
    parts = ("steps", "models_up", "models_down")
    return Cost(**{part: sum(getattr(cost, part) for cost in costs) / len(costs) for part in parts})


@functools.lru_cache(maxsize=1024)
def _sizes(data: DataConfig, seed: int) -> list[int]:
    """Return every client's number of training images."""
    return open_dataset(data, seed).check()
