"""Label tables: read, left out with a warning that names the column, or refused in one sentence."""

import contextlib
import csv
import json
import os
import re
import tempfile
import unicodedata
from pathlib import Path

import datasets
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fedddpm_app.config import ConfigError
from fedddpm_app.data.columns import splits_of
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.data.metadata import read_metadata
from fedddpm_app.data.names import in_order, normal_form
from fedddpm_app.data.sources import load_source
from fedddpm_app.data.tables import read_table
from tests.data.conftest import noise, table_of
from tests.data.test_sources import save_pictures

ROWS = [(f"{k}.png", "cat" if k % 2 else "dog") for k in range(12)]
EXAMPLES = settings(max_examples=int(os.environ.get("TABLE_EXAMPLES", "25")), deadline=None)
NOT_IN_FILES = {"codec": "utf-8", "exclude_characters": "\0"}


def delimited(rows, delimiter=",", header=("file_name", "label")):
    return "".join(delimiter.join(map(str, row)) + "\n" for row in (header, *rows))


def labels_of(folder, content, name="metadata.csv", pictures=None):
    """The labels that a table gives pictures which need not exist: texts of classes, or numbers; None if left out."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    pictures = [row[0] for row in ROWS] if pictures is None else pictures
    table = read_metadata(folder, [folder / name], [folder / picture for picture in pictures]).table
    if "label" not in table.column_names:
        return None
    feature = table.features["label"]
    return [feature.int2str(k) for k in table["label"]] if hasattr(feature, "names") else list(table["label"])


def test_a_table_beside_the_pictures_adds_columns(tmp_path, data_config):
    save_pictures(tmp_path, [f"{k:02d}.png" for k in range(40)])
    rows = [f"{k:02d}.png,{'cat' if k % 2 else 'dog'},hospital-{k % 4}" for k in reversed(range(40))]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label,site", *rows]))
    data = data_config(tmp_path, image_channels=3, partition="natural", partition_column="site", min_partition_size=1)
    found = load_source(data.dataset)
    assert found["train"].class_names == ["cat", "dog"]
    held = [c.train.tolist() + c.held_out.tolist() for c in open_dataset(data, 0).clients]
    sites = [{found["train"].table["site"][row] for row in rows} for rows in held]
    assert [len(names) for names in sites] == [2, 2]
    (tmp_path / "40.png").write_bytes((tmp_path / "00.png").read_bytes())
    load_source.cache_clear()
    with pytest.raises(ConfigError, match=r"there is no row for 1 of 41 pictures, such as .*/40\.png"):
        load_source(data.dataset)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("metadata.csv", delimited(ROWS, delimiter)) for delimiter in (",", ";", "\t", "|")),
        ("metadata.tsv", delimited(ROWS, "\t")),
        ("metadata.csv", delimited(ROWS, header=("File_Name", "Label"))),
        ("metadata.csv", delimited(ROWS).encode("utf-8-sig")),
        ("metadata.csv", delimited(ROWS, ", ").replace("\n", "\r\n") + ",\r\n\r\n"),
        ("metadata.csv", delimited([(f"./x\\..\\{name}", label) for name, label in ROWS])),
        ("metadata.csv", delimited([*ROWS, ROWS[0]])),
        ("metadata.jsonl", "".join(json.dumps({"file_name": n, "label": c, "x": [1]}) + "\n" for n, c in ROWS)),
    ],
)
def test_one_table_in_many_forms_gives_the_same_labels(tmp_path, name, content):
    assert labels_of(tmp_path, content, name) == [label for _, label in ROWS]


def test_the_files_that_datasets_writes_are_read(tmp_path):
    table = datasets.Dataset.from_dict({"file_name": [n for n, _ in ROWS], "label": [k % 3 for k in range(12)]})
    for ending, write in (("jsonl", table.to_json), ("csv", table.to_csv), ("parquet", table.to_parquet)):
        write(str(tmp_path / f"written.{ending}"))
        content = (tmp_path / f"written.{ending}").read_bytes()
        assert labels_of(tmp_path, content, f"metadata.{ending}") == [str(k % 3) for k in range(12)]
    save_pictures(tmp_path / "folder", [name for name, _ in ROWS])
    table.to_parquet(tmp_path / "folder" / "metadata.parquet")
    assert load_source(f"path:{tmp_path / 'folder'}")["train"].class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["1.0", "0.0"] * 6, ["1", "0"] * 6),
        (["5", "10"] * 6, [5, 10] * 6),
        (["9007199254740993", "0"] * 6, [9007199254740993, 0] * 6),
        (["01", "10"] * 6, ["01", "10"] * 6),
        (["True", "False"] * 6, ["True", "False"] * 6),
        (["10", "9", "x"] * 4, ["10", "9", "x"] * 4),
        ([unicodedata.normalize(form, "ros\u00e9") for form in ("NFC", "NFD")] * 6, ["ros\u00e9"] * 12),
        ([" cat", "cat ", "dog", "dog"] * 3, ["cat", "cat", "dog", "dog"] * 3),
    ],
)
def test_labels_are_the_ones_written(tmp_path, labels, expected):
    assert labels_of(tmp_path, delimited([(name, c) for (name, _), c in zip(ROWS, labels, strict=True)])) == expected


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([f"a caption {k}" for k in range(12)], "12 different texts, such as 'a caption 0'"),
        ([0.5 * k for k in range(12)], "numbers such as 0.5"),
        ([f"1e{k}" for k in range(18, 30)], "numbers such as 1e"),
        ([""] * 12, "it is empty"),
    ],
)
def test_a_column_that_holds_no_labels_is_left_out_with_a_warning(tmp_path, caplog, labels, reason):
    rows = [(name, label) for (name, _), label in zip(ROWS, labels, strict=True)]
    assert labels_of(tmp_path, delimited(rows)) is None
    assert 'its column "label" is left out, because it' in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (delimited([*ROWS[:-1], ("11.png", "")]), r'1 of 12 cells of its column "label" are empty, such as 11\.png'),
        (delimited([*ROWS[:-1], ("11.png", "nan")], header=("file_name", "y")), None),
        (delimited([(n, k or "nan") for k, (n, _) in enumerate(ROWS)]), "1 of 12 cells of its column"),
        (delimited(ROWS, header=("image", "label")), "has no column \"file_name\", only 'image', 'label'"),
        (delimited(ROWS, header=("file_name", "file_name")), 'two columns "file_name"'),
        ("", "only an empty first line"),
        (delimited(ROWS[:8]), r"no row for 4 of 12 pictures, such as .*/8\.png"),
        (delimited([*ROWS, ("gone.png", "cat")]), r"name 1 files that are not pictures .*gone\.png"),
        (delimited([*ROWS, ("0.png", "cat")]), r'different rows for one picture, "0\.png"'),
        (delimited([*ROWS, ("../other/0.png", "cat")]), r'names "\.\./other/0\.png", which is outside'),
        (delimited([*ROWS, ("", "cat")]), 'row 13 has no text in the column "file_name"'),
        (delimited([*ROWS, ("0.png", "cat", "x")]), "line 14 has 3 cells, but the first line has 2"),
        (delimited(ROWS) + '"0.png,cat\n', "damaged table"),
        (delimited([(n, "caf\u00e9") for n, _ in ROWS]).encode("latin-1"), r"not UTF-8 .* \(line 2 shows it\)"),
        (delimited(ROWS).encode("utf-16"), "not UTF-8 text but UTF-16: save"),
        (delimited(ROWS).encode("utf-16-le"), "not UTF-8 text but UTF-16, or damaged"),
    ],
)
def test_a_table_with_a_fault_is_one_sentence(tmp_path, content, says):
    if says is None:
        assert set(labels_of(tmp_path, content)) == {"cat", "dog", "nan"}
        return
    with pytest.raises(ConfigError, match=says):
        labels_of(tmp_path, content)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"file_name": ', "line 13 is not JSON"),
        ("[" * 100_000, "line 13 is not JSON"),
        ('["12.png"]', "line 13 is not a JSON object"),
        ('{"file_name": "0.png", "label": "\\ud800"}', "different rows"),
        ('{"file_name": 12}', "row 13 has no text"),
    ],
)
def test_a_damaged_line_of_json_is_named(tmp_path, line, says):
    lines = "".join(json.dumps({"file_name": n, "label": c}) + "\n" for n, c in ROWS)
    with pytest.raises(ConfigError, match=says):
        labels_of(tmp_path, lines + line, "metadata.jsonl")


def test_names_are_compared_in_one_unicode_form(tmp_path):
    names = [unicodedata.normalize("NFD", f"\u00e9{k}.png") for k in range(4)]
    rows = [(normal_form(name), "ab"[k % 2]) for k, name in enumerate(names)]
    assert labels_of(tmp_path, delimited(rows), pictures=names) == ["a", "b", "a", "b"]
    with pytest.raises(ConfigError, match="the name of two files"):
        labels_of(tmp_path, delimited(rows), pictures=[*names, normal_form(names[0])])


def test_a_table_of_another_name_is_not_ignored_in_silence(tmp_path, caplog):
    save_pictures(tmp_path, [name for name, _ in ROWS])
    (tmp_path / "labels.csv").write_text(delimited(ROWS))
    assert load_source(f"path:{tmp_path}")["train"].labels is None
    assert "labels.csv is not read: a label table has the name metadata.csv" in caplog.text


def test_class_folders_and_a_table_agree_or_are_refused(tmp_path):
    names = [f"{folder}/{k}.png" for folder in ("a", "b") for k in range(4)]
    save_pictures(tmp_path, names)
    (tmp_path / "metadata.csv").write_text(delimited([(name, f"class {name[0]}") for name in names]))
    assert load_source(f"path:{tmp_path}")["train"].class_names == ["a", "b"]
    (tmp_path / "metadata.csv").write_text(delimited([(name, int(name[2]) % 2) for name in names]))
    load_source.cache_clear()
    with pytest.raises(ConfigError, match="labels that differ from the class folders a, b"):
        load_source(f"path:{tmp_path}")
    (tmp_path / "metadata.csv").write_text(delimited([(name, "a" if name[0] == "b" else "b") for name in names]))
    with pytest.raises(ConfigError, match="labels that differ from the class folders a, b"):
        load_source(f"path:{tmp_path}")


def test_a_column_of_splits_is_not_ignored_in_silence(tmp_path, caplog):
    save_pictures(tmp_path, [name for name, _ in ROWS])
    rows = [(name, "test" if k % 2 else "train") for k, (name, _) in enumerate(ROWS)]
    (tmp_path / "metadata.csv").write_text(delimited(rows, header=("file_name", "split")))
    load_source(f"path:{tmp_path}")
    assert 'its column "split" is not used' in caplog.text


def test_a_number_that_is_not_available_is_an_empty_cell(tmp_path):
    rows = [(name, "NA" if k == 1 else k % 2) for k, (name, _) in enumerate(ROWS)]
    with pytest.raises(ConfigError, match=f"1 of {len(ROWS)} cells"):
        labels_of(tmp_path, delimited(rows))


def test_excels_line_with_the_delimiter_is_skipped(tmp_path):
    content = delimited(ROWS, ";")
    assert labels_of(tmp_path, f"sep=;\n{content}") == labels_of(tmp_path, content)


def test_one_folder_of_pictures_takes_its_labels_from_the_table(tmp_path):
    save_pictures(tmp_path, [f"images/{name}" for name, _ in ROWS])
    (tmp_path / "metadata.csv").write_text(delimited([(f"images/{name}", label) for name, label in ROWS]))
    assert load_source(f"path:{tmp_path}")["train"].class_names == ["cat", "dog"]


def test_numbers_are_in_the_order_of_numbers():
    assert in_order({"10", "2", "-1"}) == ["-1", "2", "10"]
    assert in_order({"10", "2", "x", "x10", "x9"}) == ["2", "10", "x", "x9", "x10"]


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([0.9, 1.9] * 20, datasets.Value("float32")),
        ([None] * 40, datasets.Value("int64")),
        ([[0], [1]] * 20, datasets.Sequence(datasets.Value("int64"))),
        ([f"a caption {k}" for k in range(40)], datasets.Value("string")),
        ([b"a", b"b"] * 20, datasets.Value("binary")),
    ],
    ids=["float", "empty", "list", "captions", "bytes"],
)
def test_a_data_sets_column_without_labels_is_left_out(caplog, labels, feature):
    assert splits_of(table_of(noise(40), labels, feature), "x")["train"].labels is None
    assert 'dataset = "x": its column "label" is left out' in caplog.text


@pytest.mark.parametrize(
    ("labels", "feature"), [([None, 1] * 20, datasets.Value("int64")), ([None, "a"] * 20, datasets.Value("string"))]
)
def test_empty_labels_of_a_data_set_are_one_sentence(labels, feature):
    with pytest.raises(ConfigError, match='20 of 40 cells of its column "label" are empty, such as row 0 of the train'):
        splits_of(table_of(noise(40), labels, feature), "x")


def test_class_names_keep_their_case_when_the_splits_number_them_otherwise():
    train = table_of(noise(4), [0, 1, 2, 2], datasets.ClassLabel(names=["Cat", "cat", "dog"]))
    test = table_of(noise(3), [0, 1, 2], datasets.ClassLabel(names=["dog", "cat", "Cat"]))
    found = splits_of(datasets.DatasetDict(train=train, test=test), "x")
    assert found["test"].labels.tolist() == [2, 1, 0]
    assert found["test"].class_names == ["Cat", "cat", "dog"]


def write(path, rows, delimiter):
    """Write a table in one of the forms, by a library."""
    columns = {"file_name": [name for name, _ in rows], "label": [label for _, label in rows]}
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([("file_name", "label"), *rows])


WORDS = st.text(st.characters(**NOT_IN_FILES), min_size=1).filter(
    lambda text: re.search("[a-df-z]", text) and text != "nan"
)
CLASSES = st.one_of(
    st.lists(WORDS, min_size=1, max_size=4),
    st.lists(st.integers(0, 2**62), min_size=1, max_size=4),
    st.lists(st.integers(0, 2**40).map(float), min_size=1, max_size=4),
    st.just([False, True]),
)
NAMES = st.text(st.characters(**NOT_IN_FILES).filter(lambda c: c not in "/\\"), max_size=8)


@EXAMPLES
@given(
    classes=CLASSES,
    order=st.lists(st.integers(0, 3), min_size=8, max_size=12),
    names=st.lists(NAMES, min_size=12, max_size=12),
    ending=st.sampled_from(["csv", "jsonl", "parquet"]),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
)
def test_labels_read_equal_labels_written(classes, order, names, ending, delimiter):
    rows = [(f"{k}-{names[k]}.png", classes[which % len(classes)]) for k, which in enumerate(order)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        path = folder / f"metadata.{ending}"
        write(path, rows, delimiter)
        found = labels_of(folder, path.read_bytes(), path.name, [name for name, _ in rows])
    for label, (_, written) in zip(found, rows, strict=True):
        assert str(label) == (normal_form(written.strip()) if isinstance(written, str) else _plain(written))


def _plain(written):
    return str(int(written)) if isinstance(written, float) else str(written)


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
LINES = st.lists(st.dictionaries(st.sampled_from(["file_name", "label", "y", ""]), CELLS), max_size=5)
TEXTS = st.text(st.sampled_from(list('file_name,label;\t|"\n\r0123.png \u00e9\u0301\0\ud800{}[]:')), max_size=80)


@EXAMPLES
@given(
    content=st.one_of(
        st.binary(max_size=60),
        TEXTS.map(lambda text: text.encode(errors="surrogatepass")),
        TEXTS.map(lambda text: ("file_name,label\n0.png," + text).encode(errors="surrogatepass")),
        LINES.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
        CELLS.map(lambda cell: json.dumps({"file_name": "0.png", "label": cell, "y": cell}).encode()),
    ),
    ending=st.sampled_from(["csv", "tsv", "jsonl", "parquet"]),
)
def test_no_content_of_a_table_raises_anything_but_the_documented_error(content, ending):
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(ConfigError):
        labels_of(Path(scratch).resolve(), content, f"metadata.{ending}", ["0.png"])


@EXAMPLES
@given(where=st.integers(0), value=st.integers(0, 255), cut=st.integers(0, 40))
def test_a_damaged_parquet_table_is_one_sentence(where, value, cut):
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(ConfigError):
        path = Path(scratch).resolve() / "metadata.parquet"
        write(path, ROWS, ",")
        content = bytearray(path.read_bytes())
        content[where % len(content)] = value
        path.write_bytes(bytes(content[: len(content) - cut]))
        read_table(path)
