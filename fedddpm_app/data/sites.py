"""Sites: every client has a folder of images of its own.

In a simulation the folders lie beside each other, and a folder ``test`` with them is the global test split. In a
deployment each lies on its client's host, which gives it to its SuperNode as ``data-path``; the server then has the
test split at most. A site's images are read in the same way in both, so that they are the same, in the same order.
"""

import functools
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, concatenate_datasets

from fedddpm_app.config import ConfigError, DataConfig
from fedddpm_app.data.folders import stat_digest
from fedddpm_app.data.sources import LOCAL, load_local, load_source, local_folder
from fedddpm_app.data.sources import fingerprint as source_fingerprint
from fedddpm_app.data.splits import LABEL, Split, split_named

SITES = "sites"
SITE = "site"  # the column that says whose an image is
_ONE = "site:"  # how the data set of one site is told from one that holds several


def of_site(config: DataConfig, data_path: str) -> DataConfig:
    """Return the config of the one site whose images lie in the folder ``data_path``.

    Raises
    ------
    ConfigError
        When the run's ``partition`` would split the images, or there is no such folder.
    """
    if config.partition != SITES:
        raise ConfigError(
            f'data-path = "{data_path}": this node has a folder of its own, and partition = "{config.partition}" '
            f'splits one data set over all clients: set partition = "{SITES}", or start the node without data-path.'
        )
    folder = Path(data_path).expanduser()
    if not folder.is_absolute() or not folder.is_dir():
        raise ConfigError(
            f'data-path = "{data_path}": there is no such folder on this host; give the absolute path of one in '
            "--node-config, in a container the path of the mounted volume."
        )
    return replace(config, dataset=f"{_ONE}{folder.resolve()}")


def is_site(config: DataConfig) -> bool:
    """Return whether a config is of one site's images, see ``of_site``."""
    return config.dataset.startswith(_ONE)


def fingerprint(config: DataConfig) -> str:
    """Return what tells one state of the config's source from another, without decoding it."""
    if is_site(config):
        return stat_digest(_site_folder(config))
    if config.partition == SITES:
        parent = _parent(config)
        return stat_digest(parent) if parent else ""
    return source_fingerprint(config.dataset)


def load_splits(config: DataConfig) -> dict[str, Split]:
    """Load the source of a config.

    Returns
    -------
    dict of str to Split
        ``train`` and ``test``. Of one site ``train`` alone. Of a folder of sites ``train`` (with the column ``site``,
        partition ids) unless it holds no site's images, and ``test`` if it has a test split.

    Raises
    ------
    ConfigError
        When the source cannot be read, with how to supply it.
    """
    if is_site(config):
        return {"train": _load_site(_site_folder(config), config)}
    return _load_sites(config) if config.partition == SITES else load_source(config.dataset)


def find_sites(config: DataConfig) -> tuple[list[Path], Path | None]:
    """Return the sites' folders in a folder of sites, by name, and that of the test split; none where there is none."""
    parent = _parent(config)
    folders = [] if parent is None else sorted(path for path in parent.iterdir() if path.is_dir())
    folders = [folder for folder in folders if not folder.name.startswith(".")]
    tests = [folder for folder in folders if split_named(folder.name) in ("test", "validation")]
    return [folder for folder in folders if folder not in tests], next(iter(tests), None)


@functools.lru_cache(maxsize=4)
def _load_sites(config: DataConfig) -> dict[str, Split]:
    sites, test = find_sites(config)
    splits: dict[str, Split] = {}
    if sites and len(sites) != config.num_clients:
        raise ConfigError(
            f'num-clients = {config.num_clients}, but dataset = "{config.dataset}" holds the folders of {len(sites)} '
            f"sites ({', '.join(folder.name for folder in sites[:10])}): set num-clients = {len(sites)}."
        )
    if sites:
        splits["train"] = _join([_load_site(folder, config) for folder in sites])
    if test is not None:
        splits["test"] = _load_site(test, config)
    return splits


def _parent(config: DataConfig) -> Path | None:
    """Return the folder of all sites; None where this host has none, as a server may."""
    if not Path(config.dataset.removeprefix(LOCAL)).expanduser().exists():
        return None
    return local_folder(config.dataset)


def _site_folder(config: DataConfig) -> Path:
    return Path(config.dataset.removeprefix(_ONE))


def _load_site(folder: Path, config: DataConfig) -> Split:
    """Return the images of one site: all of its folder, but for a test split of its own."""
    splits = load_local(f"{LOCAL}{folder}")
    split = splits.get("train", next(iter(splits.values())))
    if not len(split):
        raise ConfigError(f"{folder} holds no images: give some.")
    return _with_classes(split, folder, config)


def _with_classes(split: Split, folder: Path, config: DataConfig) -> Split:
    """Return a split with the labels that all sites agree on by ``class-names``; without it with none."""
    names, labels = config.classes, split.labels
    others = split.table.remove_columns([name for name in (LABEL, SITE) if name in split.table.column_names])
    table = others if others.column_names else Dataset.from_dict({"row": np.arange(len(split))})
    if not names or labels is None:
        return replace(split, table=table)
    own = split.class_names or [str(label) for label in range(int(labels.max()) + 1)]
    unknown = [own[label] for label in np.unique(labels) if own[label] not in names]
    if unknown:
        raise ConfigError(
            f'class-names = "{config.class_names}", but {folder} also has the class "{unknown[0]}": add it (and to '
            "num-classes), or move its images away."
        )
    place = {label: names.index(own[label]) for label in np.unique(labels)}
    column = [place[label] for label in labels]
    return replace(split, table=table.add_column(LABEL, column).cast_column(LABEL, ClassLabel(names=names)))


def _join(parts: list[Split]) -> Split:
    """Return the images of all sites, one after the other, with whose they are."""
    sizes = [len(part) for part in parts]
    first = [0, *accumulate(sizes)]
    owner = np.repeat(np.arange(len(parts)), sizes)
    has_labels = all(part.labels is not None for part in parts)
    kept = [part.table.select_columns([LABEL]) for part in parts] if has_labels else []
    table = concatenate_datasets(kept) if kept else Dataset.from_dict({"row": np.arange(len(owner))})
    return Split(
        table.add_column(SITE, owner),
        lambda row: parts[owner[row]].read(row - first[owner[row]]),
        lambda row: parts[owner[row]].name_of(row - first[owner[row]]),
    )
