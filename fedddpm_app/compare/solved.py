"""The solved values of a grid: they are kept, so that a grid that takes several days keeps its cells.

The expected cost of an algorithm may change with the code, and with the seeds. A value that was solved for earlier is
used again as long as the row, the condition, the matched cost and the budget (or the row whose cost is the budget) are
the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedddpm_app.compare.places import without_places
from fedddpm_app.config import Scalar
from fedddpm_app.disk.bounded import read_object
from fedddpm_app.recording.files import write_json

_SETTINGS = "settings"


def _settings(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of a ``solved.json``; what cannot be one is left out."""
    found = content.get(_SETTINGS)
    return [each for each in found if _is_setting(each)] if isinstance(found, list) else []


def _is_setting(value: object) -> bool:
    solved = value.get("solved") if isinstance(value, dict) else None
    return isinstance(solved, dict) and all(isinstance(number, int) for number in solved.values())


class SolvedValues:
    """Solved values by setting.

    Parameters
    ----------
    path : Path
        The file that holds them; missing before the first run of the grid.
    elsewhere : mapping
        The content of such a file of another machine, for values that this one does not have.
    """

    def __init__(self, path: Path, elsewhere: Mapping[str, Any]) -> None:
        self._path = path
        self._now: list[dict[str, Any]] = []
        try:
            own: Mapping[str, Any] = read_object(path)
        except (OSError, ValueError):
            own = {}
        self._before, self._elsewhere = _settings(own), _settings(elsewhere)

    def find(
        self, name: Sequence[str], given: Mapping[str, Scalar], keys: Sequence[str], budget: Mapping[str, Scalar]
    ) -> dict[str, int] | None:
        """Return the values of ``keys`` that were solved earlier for the same setting; None if there are none.

        Parameters
        ----------
        name : sequence of str
            The line's label, and the condition.
        given : mapping
            The setting's run-config keys before solving.
        keys : sequence of str
            The keys to solve for.
        budget : mapping
            The matched cost, with the budget or with the keys of the reference row whose cost is the budget.
        """
        wanted = {"name": [*name], "given": dict(given), "solve": [*keys], "budget": dict(budget)}
        published = without_places(wanted)  # which have no paths of the other machine
        pairs = [*((each, wanted) for each in self._before), *((each, published) for each in self._elsewhere)]
        for each, like in pairs:
            solved = each.get("solved")
            same = {key: each.get(key) for key in like} == like
            if same and isinstance(solved, dict) and solved.keys() == set(keys):
                return {key: int(value) for key, value in solved.items()}
        return None

    def add(
        self,
        name: Sequence[str],
        given: Mapping[str, Scalar],
        solved: Mapping[str, int],
        budget: Mapping[str, Scalar],
    ) -> None:
        """Note a setting's values for ``save``."""
        keys = {"given": dict(given), "solve": [*solved], "budget": dict(budget), "solved": dict(solved)}
        self._now.append({"name": [*name], **keys})

    def save(self) -> None:
        """Write the values of this plan."""
        write_json(self._path, {_SETTINGS: self._now})
