"""A folder of pictures: the picture files, their splits and classes, and the columns of label tables."""

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel
from PIL import Image
from PIL.ImageFile import StubImageFile

from fedddpm_app.config import ConfigError
from fedddpm_app.data.files import check_links, find_files
from fedddpm_app.data.layout import find_layout
from fedddpm_app.data.metadata import Metadata, read_metadata
from fedddpm_app.data.names import in_order, printable
from fedddpm_app.data.pixels import open_picture
from fedddpm_app.data.splits import LABEL, Split
from fedddpm_app.progress import logger

# pictures that Pillow may not open
_RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"}
_PERHAPS = _RAW | {".avif", ".dcm", ".emf", ".eps", ".exr", ".heic", ".heif", ".jxl", ".svg", ".wmf"}
_NOT_PICTURES = {".ps", ".mpg", ".mpeg"}  # documents and videos that Pillow knows


@functools.cache
def picture_endings() -> frozenset[str]:
    """Return the endings of picture files, in lower case: of formats that Pillow opens, and of other usual formats.

    Pillow also knows formats that it only writes (PDF) or only recognises (HDF5, GRIB): these files are not pictures.
    """
    Image.init()
    opened = {name for name, (factory, _) in Image.OPEN.items() if not _is_stub(factory)} | {"MPO"}  # read as a JPEG
    known = {ending for ending, name in Image.registered_extensions().items() if name in opened}
    return frozenset(known - _NOT_PICTURES | _PERHAPS)


def picture_splits(folder: Path, class_names: Sequence[str] | None = None) -> dict[str, Split]:
    """Return the splits of a folder of pictures.

    The folders directly in it are splits if all of them have names of splits (``train``, ``Testing``); otherwise
    they are classes. In a split, the folders directly in it are classes, and all files below a class folder belong
    to that class.

    Parameters
    ----------
    folder : Path
        The folder.
    class_names : sequence of str, optional
        The names that a site's class folders, or texts of its label table, may have; None if the folder is not a site.

    Raises
    ------
    ConfigError
        When there are no pictures, when the layout has more than one meaning, or when a label table does not fit.
    """
    files = list(find_files(folder))
    pictures = [path for path in files if path.suffix.lower() in picture_endings()]
    check_links([path for path in files if path.suffix.lower() not in picture_endings()])
    if not pictures:
        raise ConfigError(
            f"{printable(folder)} holds no images that can be read{_seen(files)}: give a folder of images (with one "
            "sub-folder per class, or without sub-folders), a folder of parquet, arrow or IDX files, or a save_to_disk "
            "folder."
        )
    columns = read_metadata(folder, files, pictures, class_names or ())
    layout = find_layout(folder, pictures, class_names)
    for column in columns.split_columns() if len(layout.splits) == 1 else ():
        logger.warning(
            '%s: its column "%s" is not used: to divide the pictures by it, move them to folders with the names of '
            "the splits, such as train and test.",
            columns.where,
            column,
        )
    names = in_order(set(layout.class_of.values()))
    classes = columns.classes_beside([layout.class_of[path] for path in pictures], names) if names else []
    return {split: _split(paths, columns, layout.class_of, classes) for split, paths in layout.splits.items()}


def _split(pictures: list[Path], columns: Metadata, class_of: dict[Path, str], classes: list[str]) -> Split:
    """Return a split of pictures, with the columns of label tables and the classes, if there are any."""
    table = columns.rows_of(pictures)
    if classes:
        label_of = {name: label for label, name in enumerate(classes)}
        table = table.remove_columns([c for c in table.column_names if c == LABEL])
        labels = [label_of[class_of[path]] for path in pictures]
        table = table.add_column(LABEL, labels, feature=ClassLabel(names=classes))
    return Split(table, lambda row: open_picture(pictures[row]), lambda row: printable(pictures[row]))


def _is_stub(factory: object) -> bool:
    """Return whether a format of Pillow is only recognised: it needs a handler from another package."""
    return isinstance(factory, type) and issubclass(factory, StubImageFile)


def _seen(files: list[Path]) -> str:
    """Return the three most frequent endings of a folder's files, for a message."""
    counts = Counter(printable(path.suffix.lower()) or "no ending" for path in files).most_common(3)
    return f" (its files have {', '.join(f'{ending}: {count}' for ending, count in counts)})" if counts else ""
