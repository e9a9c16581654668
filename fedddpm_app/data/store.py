"""Decoded images on disk: written once, and memory-mapped by every process of a host.

``<cache-dir>/images/<key>/`` holds, for each split, ``<split>.images.npy`` (uint8, shape (N, C, H, W)),
``<split>.rows.npy`` (int64, the images' rows in the source) and ``<split>.labels.npy`` (int64, if there are labels).
``about.json`` holds counts, class names, the images left out, and a SHA-256 of every split's content. The folder
appears complete or not at all. ``key`` is a digest of the source's state and of the settings that decoding depends on.
"""

import functools
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from fedddpm_app.config import ConfigError, DataConfig
from fedddpm_app.data.decoding import check_bad, check_mixture, decode
from fedddpm_app.data.sites import SITES, fingerprint, load_splits
from fedddpm_app.data.sources import LOCAL
from fedddpm_app.data.splits import Split
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.disk.bounded import read_json
from fedddpm_app.disk.durable import PARTIAL, partial_of, publish
from fedddpm_app.disk.private import OwnerError, check_owner, private_folder
from fedddpm_app.progress import ItemReporter, logger

SPLITS = ("train", "test")
_VERSION = 6  # of decoding and of the layout
_ABOUT = "about.json"


@dataclass(frozen=True)
class SplitInfo:
    """Facts about a decoded split.

    Attributes
    ----------
    num_images, num_grey : int
        Images that can be read, and how many of them are grey in the source.
    digest : str
        SHA-256 of pixels and labels.
    bad : list of str
        Images that cannot be read.
    has_labels : bool
        Whether the split has labels.
    class_names : list of str
        By label; empty if the source has none.
    unlabelled : list of str
        See ``Split``.
    """

    num_images: int
    num_grey: int
    digest: str
    bad: list[str]
    has_labels: bool
    class_names: list[str]
    unlabelled: list[str]


@dataclass(frozen=True)
class StoredSplit:
    """A decoded split. Its tensors are mapped from files, so they are read on access and shared by all processes.

    Attributes
    ----------
    data : ImageTensors
        uint8 (N, C, H, W), labels int64 (N,) or None.
    rows : np.ndarray
        int64 (N,), the images' rows in the source.
    info : SplitInfo
    """

    data: ImageTensors
    rows: np.ndarray
    info: SplitInfo


def cache_folder(config: DataConfig) -> Path:
    """Return the folder that ``cache-dir`` names; by default ``fedddpm`` in the user's cache.

    Raises
    ------
    ConfigError
        When the user has no home folder, or the folder belongs to another user.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    folder = Path(config.cache_dir) if config.cache_dir else home / "fedddpm"
    try:
        folder = folder.expanduser().absolute()
        check_owner(folder)
    except OwnerError as error:
        raise ConfigError(f'cache-dir = "{config.cache_dir}": {error}; give a folder of your own.') from error
    except RuntimeError as error:
        raise ConfigError(
            f'cache-dir = "{config.cache_dir}": {folder} cannot be found ({error}); set HOME or XDG_CACHE_HOME, or '
            "give an absolute path."
        ) from error
    return folder


@functools.lru_cache(maxsize=4)
def load_stored(config: DataConfig) -> dict[str, StoredSplit]:
    """Return the train and test splits; decode them first if they are not in the cache.

    With ``partition = "sites"`` one or both may be missing, see ``sites.load_splits``.

    Raises
    ------
    ConfigError
        When the source cannot be read or its images cannot be used, or the cache cannot be written.
    """
    root = cache_folder(config) / "images"
    folder = root / _key(config)
    try:
        check_owner(root)
        splits = _open(folder)
        if splits is None:
            private_folder(root)
            with FileLock(root / f"{folder.name}.lock", mode=0o600):
                if _open(folder) is None:
                    _build(folder, config)
            splits = _open(folder)
    except OSError as error:
        raise ConfigError(
            f'cache-dir = "{config.cache_dir}": {root} cannot be written ({error}); give a writable folder with room '
            "for the decoded images."
        ) from error
    if splits is None:
        raise ConfigError(f"{folder} was removed or changed during its use: remove it, and run again.")
    infos = [part.info for part in splits.values()]
    for sites in filter(None, (info.unlabelled for info in infos)):
        text = 'class-names = "%s", but these sites have no labels: %s; those of the others are not used'
        logger.warning(text, config.class_names, ", ".join(sites[:10]))
    check_bad([bad for info in infos for bad in info.bad], min((info.num_images for info in infos), default=1), config)
    check_mixture(sum(info.num_grey for info in infos), sum(info.num_images for info in infos), config)
    return splits


def _key(config: DataConfig) -> str:
    local = config.dataset.startswith(LOCAL)
    source = str(Path(config.dataset.removeprefix(LOCAL)).expanduser().resolve()) if local else config.dataset
    sites = [config.class_names, config.num_clients] if config.partition == SITES else None
    what = [_VERSION, source, sites, fingerprint(config), config.image_size, config.image_channels]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _build(folder: Path, config: DataConfig) -> None:
    source = load_splits(config)
    for left_behind in folder.parent.glob(f"{folder.name}.*{PARTIAL}"):  # by a process that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    work = partial_of(folder)
    work.mkdir(mode=0o700)
    try:
        about: dict[str, object] = {"dataset": config.dataset, "image_size": config.image_size}
        about["splits"] = {split: asdict(_store(work, split, part, config)) for split, part in source.items()}
        (work / _ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        publish(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _store(folder: Path, split: str, source: Split, config: DataConfig) -> SplitInfo:
    """Decode one split into files."""
    path = folder / f"{split}.images.npy"
    shape = (len(source), *config.image_shape)
    pixels: np.ndarray = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    _reserve(path)
    reporter = ItemReporter("decode", len(source))
    decoded = decode(source, config, pixels, reporter.after_item)
    for bad in decoded.bad:
        logger.warning('dataset = "%s": an image is left out, because it cannot be read: %s', config.dataset, bad)
    if decoded.bad:
        pixels = pixels[: len(decoded.rows)].copy()
        np.save(path, pixels)
    np.save(folder / f"{split}.rows.npy", np.asarray(decoded.rows, dtype=np.int64))
    digest = hashlib.sha256(pixels.data)
    labels = source.labels
    if labels is not None:
        np.save(folder / f"{split}.labels.npy", labels[decoded.rows])
        digest.update(labels[decoded.rows].data)
    counts = len(decoded.rows), decoded.num_grey
    names = source.class_names, source.unlabelled
    return SplitInfo(*counts, digest.hexdigest(), decoded.bad, labels is not None, *names)


def _reserve(path: Path) -> None:
    """Reserve the disk space of a mapped file: a full disk raises an error here, but a signal later."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _open(folder: Path) -> dict[str, StoredSplit] | None:
    """Map the files of a folder; None if it is missing or damaged, so that it is built again."""
    try:
        about = read_json(folder / _ABOUT)
        return {split: _open_split(folder, split, SplitInfo(**info)) for split, info in about["splits"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, EOFError) as error:
        logger.warning("the cache %s is damaged (%s): the images are decoded again", folder, error)
        return None


def _mapped(path: Path) -> torch.Tensor:
    """Map an array of numbers: a header that states more than the file holds, or objects, is an error."""
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def _open_split(folder: Path, split: str, info: SplitInfo) -> StoredSplit:
    images = _mapped(folder / f"{split}.images.npy")
    labels = _mapped(folder / f"{split}.labels.npy") if info.has_labels else None
    rows = _mapped(folder / f"{split}.rows.npy").numpy()
    if {len(images), len(rows), len(rows if labels is None else labels)} != {info.num_images}:
        raise ValueError(f"its {split} split does not hold {info.num_images} images")
    return StoredSplit(ImageTensors(images, labels), rows, info)
