"""One split of a source, before its images are decoded."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from fedddpm_app.data.names import normal_form, printable
from fedddpm_app.data.pixels import open_picture

LABEL = "label"
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target", "category", "digit", "label_id", "y")
_CAPITAL = r"(?<=(?-i:[a-z]))(?=(?-i:[A-Z]))"  # where a word begins in trainA and DataTest
_WORD = (
    rf"(?:(?<![a-z0-9])|{_CAPITAL})(train(?:ing)?|test(?:ing)?|t10k|val(?:id|idation)?|dev|eval(?:uation)?)"
    rf"(?:set|data)?(?:(?![a-z])|{_CAPITAL})"
)
_SPLIT_OF = {"train": "train", "test": "test", "t10k": "test"}
_IMAGE = "image"


def split_named(name: str) -> str | None:
    """Return the split (train, test or validation) that a file, folder or split name contains; None without one.

    A word of a split is separate from other letters, by another character or by capitals, and may end in "set" or
    "data": ``mnist_train-0.parquet``, ``trainA`` and ``testset`` contain a split, ``testimony`` does not.
    """
    match = re.search(_WORD, name, re.IGNORECASE)
    if match is None:
        return None
    word = match[1].lower().removesuffix("ing")
    return _SPLIT_OF.get(word, "validation")


def rest_of_split_name(name: str) -> str:
    """Return the letters of a name beside its word for a split: none for ``train_17``, ``images`` for ``test-images``.

    Two folders that have the same rest and different splits, such as ``train2017`` and ``val2017``, are splits of one
    data set; ``train station`` and ``test tube`` are not.
    """
    rest = re.sub(_WORD, "", normal_form(name), count=1, flags=re.IGNORECASE)
    return "".join(char for char in rest if char.isalpha()).casefold()


@dataclass(frozen=True)
class Split:
    """Images that are read one by one, and the other columns of the source.

    Attributes
    ----------
    table : Dataset
        One row per image, without the images: ``label`` (``ClassLabel`` or whole numbers) if there are labels, and
        the source's other columns.
    read : callable
        Row -> PIL image; raises PIL's error for a file that cannot be read.
    name_of : callable
        Row -> name of the image for messages: its file, or its row.
    fingerprint : str
        The fingerprint that ``datasets`` gives the images; empty if there is none.
    unlabelled : list of str
        The names of the sites without labels, if other sites have labels: then nobody's are used.
    """

    table: Dataset
    read: Callable[[int], Image.Image]
    name_of: Callable[[int], str]
    fingerprint: str = ""
    unlabelled: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> np.ndarray | None:
        """The labels, int64 of shape (N,); None if there are none."""
        return np.asarray(self.table[LABEL], dtype=np.int64) if LABEL in self.table.column_names else None

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, by label; empty if the source has none."""
        feature = self.table.features.get(LABEL)
        return list(feature.names) if isinstance(feature, ClassLabel) else []

    def select(self, rows: list[int]) -> "Split":
        """Return a split with only the given rows, in their order."""
        table = self.table.select(rows)
        return Split(table, lambda i: self.read(rows[i]), lambda i: self.name_of(rows[i]), self.fingerprint)


def split_of_dataset(images: Dataset, split: str, folders: Sequence[Path]) -> Split:
    """Return a split from a data set with an ``image`` column of encoded bytes, or of files in one of ``folders``.

    A relative name of a file is relative to these folders, or else to the current folder.
    """
    allowed = [folder.resolve() for folder in folders]
    encoded = images.select_columns([_IMAGE]).cast_column(_IMAGE, ImageFeature(decode=False))

    def read(row: int) -> Image.Image:
        stored = encoded[row][_IMAGE]
        if stored is None:
            raise ValueError("it is empty")
        if stored["bytes"] is not None:
            return open_picture(io.BytesIO(stored["bytes"]))
        paths = [(folder / stored["path"]).resolve() for folder in (*allowed, Path.cwd())]  # an absolute one stays
        inside = [path for path in paths if any(path.is_relative_to(folder) for folder in allowed)]
        if not inside:
            raise ValueError("it is outside of the folder of the data set: store the picture itself in the table")
        return open_picture(next((path for path in inside if path.is_file()), inside[0]))

    def name_of(row: int) -> str:
        path = (encoded[row][_IMAGE] or {}).get("path")
        return printable(path) if path and Path(path).is_absolute() else f"row {row} of the {split} split"

    others = images.remove_columns(_IMAGE)
    rows = Dataset.from_dict({"row": np.arange(len(images))})
    return Split(others if others.column_names else rows, read, name_of, images._fingerprint)


def split_of_array(pixels: np.ndarray, labels: np.ndarray | None, class_names: list[str], split: str) -> Split:
    """Return a split from uint8 pixels, shape (N, H, W) for grey or (N, H, W, 3), with labels int64 (N,)."""
    columns: dict[str, object] = {"row": np.arange(len(pixels))}
    features = {"row": Value("int64")}
    if labels is not None:
        columns[LABEL] = labels.astype(np.int64)
        features[LABEL] = ClassLabel(names=class_names)
    table = Dataset.from_dict(columns, features=Features(features))
    return Split(table, lambda row: Image.fromarray(pixels[row]), lambda row: f"image {row} of the {split} split")
