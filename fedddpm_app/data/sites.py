"""Sites: every client has its own folder of images.

In a simulation, one parent folder holds the sites' folders, and its sub-folder ``test`` is the global test split. In
a deployment, each site's folder is on the host of its client, and its SuperNode gets the path as ``data-path``; the
server then has at most the test split. Both read a site's images in the same way, so that the images and their order
are equal.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Final

import numpy as np
from datasets import ClassLabel, Dataset, concatenate_datasets

from fedddpm_app.config import ConfigError, DataConfig
from fedddpm_app.data.files import is_folder, sub_folders
from fedddpm_app.data.folders import stat_digest
from fedddpm_app.data.names import normal_form, printable
from fedddpm_app.data.sources import LOCAL, load_local, load_source, local_folder
from fedddpm_app.data.sources import fingerprint as source_fingerprint
from fedddpm_app.data.splits import LABEL, Split, rest_of_split_name, split_named

SITES: Final = "sites"
SITE = "site"  # the column with the partition id of an image's site
_SITE_PREFIX = "site:"  # marks the data set of a single site


def of_site(config: DataConfig, data_path: str) -> DataConfig:
    """Return the config for the single site whose images are in the folder ``data_path``.

    Raises
    ------
    ConfigError
        When the run's ``partition`` is not ``sites``, or there is no such folder.
    """
    if config.partition != SITES:
        raise ConfigError(
            f'data-path = "{data_path}": this node has its own folder, but partition = "{config.partition}" splits '
            f'one data set over all clients: set partition = "{SITES}", or start the node without data-path.'
        )
    folder = Path(data_path)
    if not is_folder(folder) or not (folder := folder.expanduser()).is_absolute():
        raise ConfigError(
            f'data-path = "{data_path}": there is no such folder on this host; give the absolute path of a folder in '
            "--node-config, or in a container the path of the mounted volume.",
            public="data-path: there is no such folder on this host; its log names the folder",
        )
    return replace(config, dataset=f"{_SITE_PREFIX}{folder.resolve()}")


def is_site(config: DataConfig) -> bool:
    """Return whether a config is for the images of a single site, see ``of_site``."""
    return config.dataset.startswith(_SITE_PREFIX)


@contextmanager
def keeping_names(config: DataConfig) -> Iterator[None]:
    """Give an error of the body, which reads a site's images, a text for others, unless it has one."""
    try:
        yield
    except Exception as error:
        if not is_site(config) or getattr(error, "public", None):
            raise
        public = f"its images cannot be used ({type(error).__name__}): the log of its SuperNode says why"
        raise ConfigError(str(error), public) from error


def fingerprint(config: DataConfig) -> str:
    """Return a text that changes when the config's source changes; no image is decoded."""
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
        ``train`` and ``test``. A single site gives only ``train``. A folder of sites gives ``train`` (with the column
        ``site`` of partition ids) if it holds sites' images, and ``test`` if it has a test split.

    Raises
    ------
    ConfigError
        When the source cannot be read; the message says how to supply it.
    """
    if is_site(config):
        return {"train": _load_site(_site_folder(config), config)}
    return _load_sites(config) if config.partition == SITES else load_source(config.dataset)


def find_sites(config: DataConfig) -> tuple[list[Path], Path | None]:
    """Return the sites' folders in a folder of sites, sorted by name, and the test split's folder (None without).

    The test split is in ``test`` or ``testing``, or else in a folder with a name of a validation split. A longer name,
    such as ``test-hospital``, is a site's.
    """
    parent = _parent(config)
    folders = [] if parent is None else sub_folders(parent)
    whole = {folder: split_named(folder.name) for folder in folders if not rest_of_split_name(folder.name)}
    tests = sorted((split, folder) for folder, split in whole.items() if split in ("test", "validation"))
    kept = [folder for folder in folders if whole.get(folder) not in ("test", "validation")]
    return kept, next((folder for _, folder in tests), None)


@functools.lru_cache(maxsize=4)
def _load_sites(config: DataConfig) -> dict[str, Split]:
    sites, test = find_sites(config)
    splits: dict[str, Split] = {}
    if sites and len(sites) != config.num_clients:
        raise ConfigError(
            f'num-clients = {config.num_clients}, but dataset = "{config.dataset}" holds the folders of {len(sites)} '
            f"sites ({', '.join(printable(folder.name) for folder in sites[:10])}): set num-clients = {len(sites)}."
        )
    if sites:
        splits["train"] = _join([(printable(folder.name), _load_site(folder, config)) for folder in sites])
    if test is not None:
        splits["test"] = _load_site(test, config)
    return splits


def _parent(config: DataConfig) -> Path | None:
    """Return the folder of all sites; None if this host has no such folder, which a server may lack."""
    if not is_folder(Path(config.dataset.removeprefix(LOCAL))):
        return None
    return local_folder(config.dataset)


def _site_folder(config: DataConfig) -> Path:
    return Path(config.dataset.removeprefix(_SITE_PREFIX))


def _load_site(folder: Path, config: DataConfig) -> Split:
    """Return the images of one site: all images in its folder, except a test split in it."""
    splits = load_local(f"{LOCAL}{folder}", config.classes)
    split = splits.get("train", next(iter(splits.values())))
    if not len(split):
        raise ConfigError(f"{printable(folder)} holds no images: put at least one image into it.")
    return _with_classes(split, folder, config)


def _with_classes(split: Split, folder: Path, config: DataConfig) -> Split:
    """Return a split with the labels that ``class-names`` gives, equal at all sites; without it, with no labels."""
    names, labels = [normal_form(name) for name in config.classes], split.labels
    others = split.table.remove_columns([name for name in (LABEL, SITE) if name in split.table.column_names])
    table = others if others.column_names else Dataset.from_dict({"row": np.arange(len(split))})
    if not names or labels is None:
        return replace(split, table=table)
    own = [normal_form(name) for name in split.class_names] or [str(label) for label in range(int(labels.max()) + 1)]
    unknown = [own[label] for label in np.unique(labels) if own[label] not in names]
    if unknown:
        raise ConfigError(
            f'class-names = "{config.class_names}", but {printable(folder)} also has the class "{unknown[0]}": add it '
            "(and to num-classes), or move its images away.",
            public=f'class-names = "{config.class_names}", but this site also has a class, named in its log, that is '
            "not among them: add it (and to num-classes), or move its images away",
        )
    label_of = {label: names.index(own[label]) for label in np.unique(labels)}
    column = [label_of[label] for label in labels]
    return replace(split, table=table.add_column(LABEL, column).cast_column(LABEL, ClassLabel(names=names)))


def _join(sites: list[tuple[str, Split]]) -> Split:
    """Concatenate the images of all sites, which have names, with a column of their partition ids."""
    parts = [part for _, part in sites]
    sizes = [len(part) for part in parts]
    first = [0, *accumulate(sizes)]
    owner = np.repeat(np.arange(len(parts)), sizes)
    unlabelled = [name for name, part in sites if part.labels is None]
    kept = [] if unlabelled else [part.table.select_columns([LABEL]) for part in parts]
    table = concatenate_datasets(kept) if kept else Dataset.from_dict({"row": np.arange(len(owner))})
    return Split(
        table.add_column(SITE, owner),
        lambda row: parts[owner[row]].read(row - first[owner[row]]),
        lambda row: parts[owner[row]].name_of(row - first[owner[row]]),
        unlabelled=unlabelled if len(unlabelled) < len(parts) else [],
    )
