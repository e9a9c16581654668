"""The layout of a folder of pictures: which of its folders are splits, and which are classes.

A layout is read only if it has one meaning. Otherwise the error says what the folder holds and how to settle it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedddpm_app.config import ConfigError
from fedddpm_app.data.names import normal_form, printable
from fedddpm_app.data.splits import rest_of_split_name, split_named
from fedddpm_app.progress import logger

_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Layout:
    """The splits and classes of a folder of pictures.

    Attributes
    ----------
    splits : dict of str to list of Path
        The pictures of each split.
    class_of : dict of Path to str
        The class of every picture, the printable name of its class folder; empty without class folders.
    """

    splits: dict[str, list[Path]]
    class_of: dict[Path, str]


def find_layout(folder: Path, pictures: Sequence[Path], class_names: Sequence[str] | None = None) -> Layout:
    """Return the splits and classes of a folder of pictures.

    Parameters
    ----------
    folder : Path
        The folder.
    pictures : sequence of Path
        All pictures under it.
    class_names : sequence of str, optional
        The names that a site's class folders may have, empty if it has no labels; None if the folder is not a site.

    Raises
    ------
    ConfigError
        When the layout has more than one meaning.
    """
    parts = {path: path.relative_to(folder).parts for path in pictures}
    tops = sorted({part[0] for part in parts.values() if len(part) > 1})
    loose = [path for path, part in parts.items() if len(part) == 1]
    if loose and tops:
        raise _beside(folder, loose, f"the {'' if any(map(split_named, tops)) else 'class '}folders {_listed(tops)}")
    known = {normal_form(name) for name in class_names or ()}
    if tops and not known.issuperset(printable(top) for top in tops):
        if _are_splits(folder, tops, nested={part[0] for part in parts.values() if len(part) > 2}):
            return _with_splits(folder, parts)
        if class_names is None:
            _check_wrapper(folder, tops, parts)
        _warn_of_inner_folders(folder, [part[:-1] for part in parts.values()])
    _check_inner_splits(folder, parts)
    return Layout({"train": list(pictures)}, {path: printable(part[0]) for path, part in parts.items() if not loose})


def _are_splits(folder: Path, tops: list[str], nested: set[str]) -> bool:
    """Return whether the top folders are splits; ``nested`` are those that hold folders of pictures."""
    named = [top for top in tops if split_named(top)]
    others = [top for top in tops if top not in named]
    if not named:
        return False
    if not others:
        _check_alike(folder, named)
        return True
    if _split_pair(named) or nested:
        one = next((name for name in named if split_named(name) == "train"), named[0])
        raise ConfigError(
            f"{printable(folder)} holds folders with names of splits ({_listed(named)}) and others "
            f"({_listed(others)}), so they can be splits or classes. If they are splits, give the folder of one (such "
            f'as "path:{printable(folder / one)}") or move {_listed(others)} away. If they are classes, rename '
            f"{_listed(named)}, and put the pictures of a class directly into its folder."
        )
    return False


def _check_alike(folder: Path, named: list[str]) -> None:
    """Raise ``ConfigError`` if folders that all have a word for a split do not look like the splits of one data set."""
    splits = [split_named(name) for name in named]
    rests = {rest_of_split_name(name) for name in named} - {""}
    if len(set(splits)) < len(splits) or len(rests) > 1:
        raise ConfigError(
            f"{printable(folder)} holds the folders {_listed(named)}, which can be splits or classes. If they are "
            "splits, name them train, validation and test, one folder for each; if they are classes, rename them "
            "without these words."
        )


def _with_splits(folder: Path, parts: dict[Path, tuple[str, ...]]) -> Layout:
    """Return the layout of folders of splits, which hold class folders or only pictures."""
    splits: dict[str, list[Path]] = defaultdict(list)
    for path, part in parts.items():
        splits[str(split_named(part[0]))].append(path)
    flat = {split: [path for path in paths if len(parts[path]) == 2] for split, paths in splits.items()}
    for split, paths in splits.items():
        if 0 < len(flat[split]) < len(paths):
            raise _beside(folder / parts[paths[0]][0], flat[split], "the class folders")
    without = [split for split, paths in flat.items() if paths]
    if 0 < len(without) < len(splits):
        having = next(paths for split, paths in splits.items() if split not in without)
        lacking = splits[without[0]]
        raise ConfigError(
            f"{printable(folder)}: {printable(parts[having[0]][0])} has class folders, but "
            f"{printable(parts[lacking[0]][0])} has not: move {printable(parts[lacking[0]][0])} away, or put its "
            "pictures into class folders of the same names."
        )
    _check_inner_splits(folder, parts)
    class_of = {} if without else {path: printable(part[1]) for path, part in parts.items()}
    if class_of:
        _warn_of_inner_folders(folder, [part[1:-1] for part in parts.values()])
    _warn_of_classes_without_training(folder, splits, class_of)
    return Layout(dict(splits), class_of)


def _warn_of_classes_without_training(folder: Path, splits: dict[str, list[Path]], class_of: dict[Path, str]) -> None:
    """Log a warning if a split has class folders that the train split lacks."""
    classes = {split: {class_of[path] for path in paths} for split, paths in splits.items() if class_of}
    for split in classes if "train" in classes else ():
        extra = sorted(classes[split] - classes["train"])
        if extra:
            logger.warning(
                "%s: the %s split has classes without training images: %s.", printable(folder), split, _listed(extra)
            )


def _warn_of_inner_folders(folder: Path, places: Iterable[tuple[str, ...]]) -> None:
    """Log a warning if a class folder holds several folders of pictures, which may be the classes that are meant."""
    inside: dict[str, set[str]] = defaultdict(set)
    for top, *below in places:
        inside[top].add(below[0] if below else "")
    names = sorted({name for held in inside.values() if len(held) > 1 for name in held} - {""})
    if names:
        logger.warning(
            "%s: the classes are %s; the folders in them (%s) do not count.",
            printable(folder),
            _listed(sorted(inside)),
            _listed(names),
        )


def _check_wrapper(folder: Path, tops: list[str], parts: dict[Path, tuple[str, ...]]) -> None:
    """Raise ``ConfigError`` for a single folder around the layout, as many archives have it."""
    inner = sorted({"/".join(part[1:-1]) for part in parts.values()})
    if len(tops) == 1 and len(inner) > 1 and "" not in inner:
        raise ConfigError(
            f"{printable(folder)} holds only the folder {printable(tops[0])}, with the pictures in folders below it "
            f'({_listed(inner)}): give "path:{printable(folder / tops[0])}".'
        )


def _check_inner_splits(folder: Path, parts: dict[Path, tuple[str, ...]]) -> None:
    """Raise ``ConfigError`` if a folder below the top holds train and test folders, which would become one split."""
    inside: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for part in parts.values():
        for depth in range(1, len(part) - 1):
            inside[part[:depth]].add(part[depth])
    for parent, names in inside.items():
        pair = _split_pair(names)
        if pair:
            where = printable("/".join(parent))
            raise ConfigError(
                f"{printable(folder)}: {where} holds folders of splits ({_listed(pair)}), which must be at the top: "
                f"move {where}/{printable(pair[0])} to {printable(pair[0])}/{where}, and so on, or give the folder "
                f'"path:{printable(folder)}/{where}".'
            )


def _split_pair(names: Iterable[str]) -> list[str]:
    """Return names that differ only in their split, such as train2017 and val2017; empty without such names."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        if split_named(name):
            alike[rest_of_split_name(name)].append(name)
    return next((group for group in alike.values() if len({split_named(name) for name in group}) > 1), [])


def _beside(folder: Path, pictures: Sequence[Path], what: str) -> ConfigError:
    return ConfigError(
        f"{printable(folder)}: {len(pictures)} pictures, such as {printable(pictures[0].name)}, lie beside {what}: put "
        "each picture into a class folder, or all pictures into one folder without classes."
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more
