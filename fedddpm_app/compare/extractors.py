"""The extractors of a published grid, so that another machine measures its cells alike.

An extractor that is fitted to the data has other last bits on another kind of processor, and metrics with other digests
are not compared. So ``--publish DIR`` copies its file to ``DIR/extractors/DIGEST/``, and ``--restore DIR`` copies it to
the cache.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from fedddpm_app.compare.cells import Cell
from fedddpm_app.compare.results import metrics_of
from fedddpm_app.config import ConfigError
from fedddpm_app.data.store import cache_folder
from fedddpm_app.disk.durable import replacing
from fedddpm_app.disk.private import private_folder
from fedddpm_app.evaluation.extractors.fitted import FITTED, FOLDER, digest_of, fitted_extractors
from fedddpm_app.progress import logger
from fedddpm_app.recording.files import writing
from fedddpm_app.recording.status import COMPLETED, read_status


def publish_extractors(cells: Iterable[Cell], target: Path) -> list[Path]:
    """Copy the fitted extractors that complete cells were measured with from the cache, unless they are published.

    Return the folders of the new ones.

    Raises
    ------
    RecordingError
        When a file cannot be written.
    """
    new = []
    for cache, digest in _fitted_by(cells):
        folder = target / FOLDER / digest
        path = fitted_extractors(cache).get(digest)
        if path and digest not in fitted_extractors(folder):
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                _copy(path, folder)
            new.append(folder)
    return new


def restore_extractors(cells: Iterable[Cell], target: Path | None) -> None:
    """Copy the published extractors that complete cells were measured with to the cache, before other cells are run.

    If one is neither published nor in the cache, a warning says so.

    Raises
    ------
    ConfigError
        When the cache has another extractor of the same data.
    RecordingError
        When the cache cannot be written.
    """
    for cache, digest in _fitted_by(cells):
        if digest in fitted_extractors(cache):
            continue
        path = fitted_extractors(target / FOLDER / digest).get(digest) if target else None
        if path is None:
            logger.warning(
                "complete cells were measured with extractor %s, which is not in %s%s. If this machine fits another "
                "one to the data, the metrics of its cells cannot be compared with theirs, and are left out",
                *(digest, cache, f" or {target / FOLDER}" if target else ""),
            )
            continue
        if found := digest_of(cache / path.name):
            raise ConfigError(
                f"{cache / path.name} is extractor {found}, but complete cells were measured with {digest}, which was "
                "fitted on another machine: add -c 'cache-dir=\"a/new/folder\"', so that all cells are measured alike."
            )
        with writing(cache):
            private_folder(cache)
            _copy(path, cache)


def _fitted_by(cells: Iterable[Cell]) -> list[tuple[Path, str]]:
    """Return the cache folders and the digests of fitted extractors of complete cells, each pair once."""
    found: dict[tuple[Path, str], None] = {}
    for cell in cells:
        status = read_status(cell.directory)
        if status.state == COMPLETED:
            cache = cache_folder(cell.setting.config.data) / FOLDER
            used = [metric for metric in metrics_of(status).values() if metric.get("extractor") in FITTED]
            found |= {(cache, str(metric.get("extractor_digest"))): None for metric in used}
    return list(found)


def _copy(path: Path, folder: Path) -> None:
    with replacing(folder / path.name) as work:
        shutil.copyfile(path, work)
