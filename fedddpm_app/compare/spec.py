"""The grid file of `fedddpm compare`: rows x conditions x seeds, as TOML."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedddpm_app.compare.solver import is_whole_number
from fedddpm_app.config import ConfigError, Scalar, known_keys, shown
from fedddpm_app.config.purposes import PLACES, RESUMING
from fedddpm_app.config.toml_files import read_table
from fedddpm_app.config.words import advice

ALGORITHM = "algorithm"
# Keys that name a run and its place: the command sets them.
OWN_KEYS = ("seed", *(key for key in PLACES if key != "cache-dir"), *RESUMING)
_NAME = r"^\w[\w.+-]{0,59}$"
_NAME_FIX = 'it should have at most 60 letters, digits, "_", "-", "+" and ".", because it names a folder'
_MARKUP = frozenset("<>`|[]")  # of Markdown, in which the results are written
_TABLES = ("base", "conditions", "rows")

Keys = dict[str, Scalar]
Name = Annotated[str, Field(pattern=_NAME, description=_NAME_FIX)]


class Sweep(BaseModel):
    """A key of the run config, and the values that every row that uses it is run with.

    Attributes
    ----------
    key, values : str, list
        Of the run config.
    reference : bool, int, float or str, optional
        One of the values: the lines of a row are also compared with its line of this value.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    key: str
    values: Annotated[list[Scalar], Field(min_length=1)]
    reference: Scalar | None = None


class Row(BaseModel):
    """A row: run-config keys, and the keys that are solved for.

    Attributes
    ----------
    solve : str or list of str
        Whole-number keys; the first is as large as the budget allows, then the second, ... Empty to keep the row's
        keys as they are.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Scalar]
    solve: str | list[str] | None = None

    @property
    def given(self) -> Keys:
        """The run-config keys."""
        return dict(self.__pydantic_extra__)

    @property
    def solved(self) -> list[str]:
        """The keys of ``solve``."""
        named = "num-rounds" if self.solve is None else self.solve
        return [named] if isinstance(named, str) and named else list(named)


class GridSpec(BaseModel):
    """A grid file.

    Attributes
    ----------
    name : str
        Names the default folder, and the files in ``results/``.
    title : str
        The heading of the results.
    reference : str
        The row that others are compared with, and whose cost is the budget if none is given.
    also_against : list of str
        Further rows that all rows are compared with in sentences, such as controls.
    seeds : list of int
        Every cell is run with each of them.
    match : {"rounds", "steps", "bytes"}
        The cost that is equal for all rows.
    budget : float, optional
        Gradient steps, or models exchanged; by default the cost of the reference row.
    metrics : list of str
        The columns of the table; the first is the metric of the claim.
    trade_off : list of str
        Those of the other metrics that the first is plotted against.
    base, conditions, rows : dict
        Run-config keys of every cell, of each condition, of each row.
    sweep : Sweep, optional
        For an ablation.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    name: Name
    title: str = ""
    reference: str
    also_against: list[str] = Field(default_factory=list)
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]
    match: Literal["rounds", "steps", "bytes"] = "steps"
    budget: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    metrics: Annotated[list[str], Field(min_length=1)]
    trade_off: list[str] = Field(default_factory=list)
    base: Keys = Field(default_factory=dict)
    conditions: Annotated[dict[Name, Keys], Field(min_length=1)]
    rows: Annotated[dict[Name, Row], Field(min_length=1)]
    sweep: Sweep | None = None

    def solved_keys(self, row: str) -> list[str]:
        """Return the keys that are solved for in a row, in their order; none if the row is left alone."""
        if self.match == "rounds" or (row == self.reference and self.budget is None):
            return []
        return self.rows[row].solved

    def keys_of_row(self, row: str) -> Keys:
        """Return a row's run-config keys; the algorithm is the row's name if the row does not give it."""
        return {ALGORITHM: row, **self.rows[row].given}


def read_spec(path: Path, extra: Mapping[str, Scalar]) -> GridSpec:
    """Read a grid file; ``extra`` keys are added to ``[base]``.

    Raises
    ------
    ConfigError
        With a sentence for each problem: file, key, value, fix.
    """
    content, problems = read_table("GRID", str(path), "a grid file, such as conf/compare/toy.toml")
    if problems:
        raise ConfigError("\n".join(problems))
    if isinstance(content.get("base", {}), dict):
        content["base"] = {**content.get("base", {}), **extra}
    try:
        spec = GridSpec.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentences(path, error))) from error
    if problems := [f"{path}: {problem}" for problem in _problems(spec)]:
        raise ConfigError("\n".join(problems))
    return spec


def _sentences(path: Path, error: ValidationError) -> list[str]:
    """Return a sentence for each problem that pydantic found; a union's branches are one problem."""
    found: dict[str, str] = {}
    for each in error.errors():
        place = [str(part) for part in each["loc"]]
        key = ".".join(place[:3] if place[0] in _TABLES else place[:2])
        found.setdefault(key, _sentence(key, place, each["type"], each["msg"], each["input"]))
    return [f"{path}: {sentence}" for sentence in found.values()]


def _sentence(key: str, place: list[str], kind: str, message: str, value: Any) -> str:
    if kind == "missing":
        return f"{key} is missing: add it; docs/comparing.md describes a grid file."
    if kind == "extra_forbidden":
        known: Iterable[str] = Sweep.model_fields if place[0] == "sweep" else GridSpec.model_fields
        return f"{key} = {shown(value)}: there is no such key; {_advice(place[-1], known)}"
    if place[-1] == "[key]":
        return f"{place[0]}.{place[1]} cannot be a name: {_NAME_FIX}."
    if place[-1] == "solve" or place[2:3] == ["solve"]:
        return f"{key} = {shown(value)} cannot be used: it should be a key, a list of keys or an empty text."
    if place[0] in _TABLES and len(place) > (1 if place[0] == "base" else 2):
        return f"{key} = {shown(value)} is not a number, a text, true or false; write one of these."
    fix = GridSpec.model_fields[place[0]].description or message.replace("Input should", "it should")
    pattern = _NAME_FIX if kind == "string_pattern_mismatch" else fix
    return f"{key} = {shown(value)} cannot be used: {pattern}."


def _advice(name: str, known: Iterable[str]) -> str:
    if name in known_keys():
        return "it is a key of runs: write it below [base], a condition or a row."
    known = list(known)
    found = advice(name, known)
    return found if found.startswith("did") else f"the keys are {', '.join(known)}."


def _problems(spec: GridSpec) -> list[str]:
    """Return the problems with values that are valid alone."""
    found = []
    if spec.reference not in spec.rows:
        found.append(f"reference = {shown(spec.reference)} is not a row: use one of {', '.join(spec.rows)}.")
    if unknown := [row for row in spec.also_against if row not in spec.rows]:
        found.append(f"also_against = {shown(unknown[0])} is not a row: use {', '.join(spec.rows)}.")
    if unknown := [metric for metric in spec.trade_off if metric not in spec.metrics[1:]]:
        given = f"trade_off = {shown(unknown[0])}"
        found.append(f"{given} is not one of the metrics after the first, {spec.metrics[0]}: add it to metrics.")
    swept = [value for value in spec.sweep.values if isinstance(value, str)] if spec.sweep else []
    for key, text in (("title", spec.title), *(("sweep.values", value) for value in swept)):
        if not text.isprintable() or _MARKUP & set(text):
            found.append(
                f"{key} = {shown(text)} is markup in the results: leave out line ends and the characters < > ` | [ ]."
            )
    for key, values in (("seeds", spec.seeds), ("metrics", spec.metrics), ("trade_off", spec.trade_off)):
        if len(set(values)) < len(values):
            found.append(f"{key} = {shown(values)}: a value comes twice; give each once.")
    if spec.match == "rounds" and spec.budget is not None:
        found.append(f'budget = {spec.budget:g} has no meaning with match = "rounds": leave it out.')
    tables = {"base": spec.base}
    tables |= {f"conditions.{name}": keys for name, keys in spec.conditions.items()}
    tables |= {f"rows.{name}": row.given for name, row in spec.rows.items()}
    for table, keys in tables.items():
        found += [sentence for key in keys for sentence in _problems_of_key(spec, table, key, keys[key])]
    for name, row in spec.rows.items():
        found += _problems_of_solve(spec, f"rows.{name}.solve = {shown(row.solve)}", row)
    if spec.sweep:
        found += _problems_of_sweep(spec, spec.sweep)
    return found


def _problems_of_key(spec: GridSpec, table: str, key: str, value: Scalar) -> list[str]:
    """Return the problem with a key of a table; its value is checked with the run config."""
    given, row = f"{table}.{key} = {shown(value)}", table.removeprefix("rows.")
    if key in OWN_KEYS:
        return [f"{given}: the command sets this key; leave it out (seeds and --out say where runs go)."]
    if key not in known_keys():
        return [f"{given}: there is no such key; {advice(key, known_keys())}"]
    if row != table and [key] == spec.solved_keys(row)[:1]:
        return [f'{given}: the command solves for this key; leave it out, or set solve = "" to keep it.']
    return []


def _problems_of_solve(spec: GridSpec, given: str, row: Row) -> list[str]:
    """Return the problems with the keys that are solved for."""
    if not row.solve:
        return []
    if spec.match == "rounds":
        return [f'{given} has no meaning with match = "rounds": leave it out.']
    unknown = [key for key in row.solved if key not in known_keys()]
    if unknown:
        return [f"{given}: {unknown[0]} is not a key; {advice(unknown[0], known_keys())}"]
    whole = [key for key in row.solved if not is_whole_number(key)]
    return [f"{given}: {key} does not take whole numbers; use num-rounds or a number of steps." for key in whole]


def _problems_of_sweep(spec: GridSpec, sweep: Sweep) -> list[str]:
    given = f"sweep.key = {shown(sweep.key)}"
    if sweep.key not in known_keys():
        return [f"{given}: there is no such key; {advice(sweep.key, known_keys())}"]
    if sweep.key in OWN_KEYS:
        return [f"{given}: the command sets this key; sweep another key."]
    found = [
        f'{given} is solved for in [rows.{row}]: set solve to another key, or to "".'
        for row in spec.rows
        if sweep.key in spec.solved_keys(row)
    ]
    tables = [("base", spec.base), *spec.conditions.items(), *((name, row.given) for name, row in spec.rows.items())]
    found += [f"{given} is also a key of {name}: leave it out there." for name, keys in tables if sweep.key in keys]
    if len(set(map(folder_name, sweep.values))) < len(sweep.values):
        found.append(f"sweep.values = {shown(sweep.values)}: a value comes twice; give each once.")
    if sweep.reference in sweep.values and spec.match != "rounds" and spec.budget is None:
        found.append(
            f"sweep.reference = {shown(sweep.reference)} compares lines of a row, which have no common budget: give "
            "budget, or leave sweep.reference out."
        )
    if sweep.reference is not None and sweep.reference not in sweep.values:
        found.append(f"sweep.reference = {shown(sweep.reference)} is not one of the values {shown(sweep.values)}.")
    return found


def folder_name(value: Scalar) -> str:
    """Return a value as a part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")
