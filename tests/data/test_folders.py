"""Folders as people have them: links, ambiguous layouts, odd names, files that are not pictures."""

import os
import tempfile
import types
import unicodedata
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fedddpm_app.config import ConfigError
from fedddpm_app.data import files
from fedddpm_app.data.export import export_sites
from fedddpm_app.data.folders import stat_digest
from fedddpm_app.data.names import in_order, printable
from fedddpm_app.data.pictures import picture_endings, picture_splits
from fedddpm_app.data.sites import find_sites, load_splits, of_site
from fedddpm_app.data.sources import load_local
from fedddpm_app.data.splits import split_named

EXAMPLES = int(os.environ.get("FEDDDPM_TREES", "40"))  # folder trees per property
NFC, NFD = (unicodedata.normalize(form, "Ärger") for form in ("NFC", "NFD"))


def png():
    content = BytesIO()
    Image.new("L", (1, 1)).save(content, "PNG")
    return content.getvalue()


PNG = png()


def grow(root, *names):
    """Write files; a name that ends in a picture's ending gets a picture."""
    for name in names:
        path = Path(root, os.fsdecode(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG if path.suffix.lower() in picture_endings() else b"junk")


def labels_of(folder):
    """The class of every picture, by the path below the folder."""
    return {
        os.path.relpath(path, os.path.realpath(folder)): None if part.labels is None else part.class_names[label]
        for part in picture_splits(Path(folder).resolve()).values()
        for path, label in zip(map(part.name_of, range(len(part))), part.labels, strict=True)
    }


def counts(folder):
    """The number of pictures of each class in each split."""
    found = {}
    for split, part in picture_splits(folder).items():
        labels = [] if part.labels is None else part.labels.tolist()
        names = part.class_names or ["-"]
        found[split] = {n: labels.count(k) if labels else len(part) for k, n in enumerate(names)}
    return found


def test_two_names_for_one_folder_are_two_names(tmp_path):
    grow(tmp_path, "pool/1.png", "pool/2.png", "data/train/dog/1.png", "data/test/dog/1.png")
    for split in ("train", "test"):
        (tmp_path / "data" / split / "cat").symlink_to("../../pool")
    assert counts(tmp_path / "data") == {"train": {"cat": 2, "dog": 1}, "test": {"cat": 2, "dog": 1}}


def test_a_link_to_a_folder_above_itself_is_skipped(tmp_path):
    grow(tmp_path, "other/1.png", "data/cat/1.png", "data/dog/deep/1.png")
    for target in (tmp_path, tmp_path / "data", tmp_path / "data" / "dog"):
        (tmp_path / "data" / "dog" / "deep" / f"to-{target.name}").symlink_to(target)
    assert counts(tmp_path / "data") == {"train": {"cat": 1, "dog": 1}}


def test_links_that_lead_nowhere(tmp_path, caplog):
    grow(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "cat" / "lost.png").symlink_to("nowhere.png")
    (tmp_path / "notes.txt").symlink_to("notes.txt")
    stat_digest(tmp_path)
    assert counts(tmp_path) == {"train": {"cat": 2, "dog": 1}}  # lost.png counts as unreadable
    assert "notes.txt is a link to notes.txt, which cannot be reached: it is left out" in caplog.text
    (tmp_path / "bird").symlink_to("/mnt/unplugged")
    with pytest.raises(ConfigError, match="bird is a link to /mnt/unplugged, which cannot be reached: restore"):
        picture_splits(tmp_path)


def test_folders_of_links_to_each_other_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MAX_LINKS", 20)
    grow(tmp_path, *(f"{k}/1.png" for k in range(6)))
    for k in range(6):
        for other in range(6):
            (tmp_path / str(k) / f"to-{other}").symlink_to(tmp_path / str(other))
    with pytest.raises(ConfigError, match="more than 20 ways to one folder"):
        picture_splits(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    grow(tmp_path, "cat/1.png", "dog/1.png")
    scan = os.scandir

    def refuse(folder):
        if Path(folder).name == "dog":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"dog cannot be read \(Permission denied\): change its permissions"):
        picture_splits(tmp_path)


def test_a_pipe_is_not_a_picture(tmp_path):
    grow(tmp_path, "cat/1.png", "dog/1.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert counts(tmp_path) == {"train": {"cat": 1, "dog": 1}}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["tested positive/1.png", "test negative/1.png"], {"train": {"test negative": 1, "tested positive": 1}}),
        (["train/1.png", "bus/1.png"], {"train": {"bus": 1, "train": 1}}),
        (["train station/1.png", "test tube/1.png", "bus/1.png"],
         {"train": {"bus": 1, "test tube": 1, "train station": 1}}),
        (["Train/a/1.png", "VALIDATION/a/1.png"], {"train": {"a": 1}, "validation": {"a": 1}}),
        (["train2017/1.png", "val2017/1.png", "annotations/x.json"], {"train": {"-": 1}, "validation": {"-": 1}}),
        (["train/1.png", "test/1.png", "__MACOSX/x/1.png", "@eaDir/1.png"], {"train": {"-": 1}, "test": {"-": 1}}),
        (["train/a/1.png", "test/a/1.png", "val/a/1.png"],
         {"train": {"a": 1}, "test": {"a": 1}, "validation": {"a": 1}}),
        (["test/1.png"], {"test": {"-": 1}}),
        ([f"{k}/1.png" for k in range(1, 11)], {"train": {str(k): 1 for k in range(1, 11)}}),
        (["10/1.png", "2/1.png", "01/1.png"], {"train": {"01": 1, "2": 1, "10": 1}}),
        (["a/1.png", "a/deep/2.png", "b/1.png"], {"train": {"a": 2, "b": 1}}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_layout_with_one_meaning_is_read(tmp_path, names, expected):
    grow(tmp_path, *names)
    found = counts(tmp_path)
    assert found == expected
    assert [list(part) for part in found.values()] == [list(expected[split]) for split in found]  # the order too


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["train/cat/1.png", "test/cat/1.png", "unlabeled/1.png"], r"splits \(test, train\) and others \(unlabeled\)"),
        (["train/cat/1.png", "extra/cat/1.png"], r'splits \(train\) and others \(extra\).*give .* "path:.*/train"'),
        (["train/1.png", "test/1.png", "unlabeled/1.png"], r"splits \(test, train\) and others \(unlabeled\)"),
        (["train2017/1.png", "val2017/1.png", "unlabeled2017/1.png"], r"others \(unlabeled2017\)"),
        (["test positive/1.png", "test negative/1.png"], "folders test negative, test positive, which can be"),
        (["train2014/1.png", "train2017/1.png", "test/1.png"], "test, train2014, train2017, which can be splits or"),
        (["train station/1.png", "test tube/1.png"], "test tube, train station, which can be splits or classes"),
        (["train/cat/1.png", "test/1.png"], "train has class folders, but test has not: move test away"),
        (["train/cat/1.png", "train/1.png"], r"/train: 1 pictures, such as 1\.png, lie beside the class folders"),
        (["train/cat/1.png", "test/cat/1.png", "logo.png"], r"logo\.png, lie beside the folders test, train"),
        (["flowers/rose/1.png", "flowers/tulip/1.png"], r'holds only the folder flowers.*give "path:.*/flowers"'),
        (["set/train/a/1.png", "set/test/a/1.png"], r'only the folder set.*\(test/a, train/a\): give "path:.*/set"'),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], r"cat holds folders of splits \(test, train\)"),
        (["a.parquet.bak", "b.xyz", "c.xyz"], r"no images that can be read \(its files have \.xyz: 2, \.bak: 1\)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_layout_with_two_meanings_is_refused(tmp_path, names, says):
    grow(tmp_path, *names)
    with pytest.raises(ConfigError, match=says):
        picture_splits(tmp_path)


def test_a_class_of_the_test_split_alone_is_reported(tmp_path, caplog):
    grow(tmp_path, "train/cat/1.png", "test/cat/1.png", "test/Cat/1.png")
    assert counts(tmp_path)["test"] == {"Cat": 1, "cat": 1}
    assert "the test split has classes without training images: Cat" in caplog.text


def test_several_folders_in_a_class_are_reported(tmp_path, caplog):
    grow(tmp_path / "one", "a/images/1.png", "b/images/1.png")
    assert counts(tmp_path / "one") == {"train": {"a": 1, "b": 1}}
    assert not caplog.text
    grow(tmp_path, *(f"folds/fold{k}/{name}/1.png" for k in (1, 2) for name in ("cat", "dog")))
    assert counts(tmp_path / "folds") == {"train": {"fold1": 2, "fold2": 2}}
    assert "the classes are fold1, fold2; the folders in them (cat, dog) do not count" in caplog.text


def test_the_class_names_of_a_site_settle_its_layout(tmp_path):
    grow(tmp_path, "train/1.png", "train/2.png")
    assert picture_splits(tmp_path)["train"].class_names == []
    assert picture_splits(tmp_path, ["bus", "train"])["train"].class_names == ["train"]


def test_the_folders_of_sites(tmp_path, data_config):
    grow(tmp_path, *(f"{name}/1.png" for name in ("dev", "test", f"{NFD} clinic", "test-hospital", "__MACOSX", "a")))
    sites, test = find_sites(data_config(tmp_path, partition="sites"))
    assert [printable(site.name) for site in sites] == ["a", "test-hospital", f"{NFC} clinic"]
    assert test.name == "test"
    assert find_sites(data_config("/x" * 3000, partition="sites")) == ([], None)


def test_a_sites_class_names_are_compared_in_normal_form(tmp_path, data_config):
    grow(tmp_path, *(f"{NFD}/{k}.png" for k in range(4)))
    config = data_config(partition="sites", class_names=f"b,{NFC}", num_classes=2)
    assert load_splits(of_site(config, str(tmp_path)))["train"].labels.tolist() == [1] * 4
    with pytest.raises(ConfigError, match="there is no such folder on this host"):
        of_site(config, "~nobody-here/x")


@pytest.mark.parametrize("name", ["..", ".hidden", "", "a,b", "a/b", "a\nb", " a", "x" * 256, "__MACOSX", "Mu\udcf1oz"])
def test_a_class_that_cannot_be_a_folder_is_refused(tmp_path, name):
    images = types.SimpleNamespace(class_names=["a", name], train=None, test=None, clients=[])
    with pytest.raises(ConfigError, match="cannot be a folder name: rename the class"):
        export_sites(images, tmp_path / "new")


def test_two_forms_of_a_name_are_one_class(tmp_path):
    grow(tmp_path, f"train/{NFC}/1.png", "train/b/1.png", f"test/{NFD}/1.png")
    assert counts(tmp_path) == {"train": {"b": 1, NFC: 1}, "test": {"b": 0, NFC: 1}}


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        (b"Mu\xf1oz", r"Mu\xf1oz"),
        (b"a\nb", r"a\nb"),
        (b"a\x1b[31m", r"a\x1b[31m"),
        ("zero\u200cwidth".encode(), "zero\u200cwidth"),
    ],
)
def test_odd_names_are_read_and_can_be_printed(tmp_path, name, printed):
    grow(tmp_path, name + b"/" + name + b".png", b"b/1.png")
    stat_digest(tmp_path)
    part = picture_splits(tmp_path)["train"]
    assert all(part.read(k).size == (1, 1) for k in range(2))
    assert set(part.class_names) == {"b", printed}
    assert {Path(part.name_of(k)).name for k in range(2)} == {"1.png", f"{printed}.png"}


def test_only_files_that_pillow_can_open_are_pictures(tmp_path):
    grow(tmp_path, "a/1.png", "b/1.JPG", "paper.pdf", "a/features.h5", "b/x.grib", "clip.mpg", "thesis.ps", "x.palm")
    assert counts(tmp_path) == {"train": {"a": 1, "b": 1}}
    assert {".png", ".jpg", ".webp", ".tif", ".pgm", ".mpo", ".fits", ".heic", ".eps", ".dng"} < picture_endings()


CLASS = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6).filter(
    lambda name: not files.is_hidden(name) and not split_named(name) and name.strip(".")
)
STEM = st.sampled_from(["1", "two words", "Ä", "A\u0308", "ümläut", "Mu\udcf1oz", "a\nb", "%s", "$x^$", "[1]", "-c"])
ENDING = st.sampled_from([".png", ".PNG", ".jpg", ".txt", ".pdf", ".h5", "", ".csv"])
SPLITS = st.sampled_from([("",), ("train/",), ("train/", "test/"), ("Train/", "VALIDATION/"), ("a_train/", "a_test/")])
TREES = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@TREES
@given(st.data())
def test_the_labels_read_are_the_labels_written(data):
    """Of trees with one meaning: class folders with deeper folders, other files, and links to class folders."""
    names = data.draw(st.lists(CLASS, min_size=2, max_size=4, unique_by=printable))
    splits = data.draw(SPLITS)
    written = {}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root).resolve()
        for split in splits:
            for name in names:
                form = data.draw(st.sampled_from(["NFC", "NFD"]))
                place = f"{split}{unicodedata.normalize(form, name)}"
                for stem in data.draw(st.lists(STEM, min_size=1, max_size=3, unique_by=printable)):
                    deeper = data.draw(st.sampled_from(["", "deep/", "deep/er/", ".hidden/"]))
                    path, ending = f"{place}/{deeper}{stem}", data.draw(ENDING)
                    try:
                        grow(folder, f"{place}/first.png", path + ending, "README.txt")
                    except (OSError, UnicodeEncodeError):  # names that the file system refuses
                        assume(False)
                    written[printable(f"{place}/first.png")] = printable(name)
                    if ending.lower() in picture_endings() and not deeper.startswith("."):
                        written[printable(path + ending)] = printable(name)
        stat_digest(folder)
        assert labels_of(folder) == written
        part = picture_splits(folder)["train"]
        assert part.class_names == in_order({printable(name) for name in names})


PART = st.one_of(
    CLASS,
    st.sampled_from(
        ["train", "test", "val", "Training", "train2017", "val2017", "unlabeled", "test negative", "cat", "dog", "01",
         ".hidden", "__MACOSX", "Ä", "A\u0308", "Mu\udcf1oz", "lost+found", "sites", "x.parquet", "state.json"]
    ),
)  # fmt: skip


@TREES
@given(st.data())
def test_any_tree_is_read_or_refused_in_one_sentence(data):
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root).resolve()
        made = [folder]
        for _ in range(data.draw(st.integers(1, 8))):
            parts = data.draw(st.lists(PART, min_size=0, max_size=3))
            path = folder.joinpath(*parts, data.draw(STEM) + data.draw(ENDING))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():  # such as a pipe, which would wait for its reader
                    continue
                what = data.draw(st.sampled_from(["file", "file", "file", "junk", "link", "lost", "pipe"]))
                if what == "link":
                    path.symlink_to(data.draw(st.sampled_from(made)))
                elif what == "lost":
                    path.symlink_to("nowhere")
                elif what == "pipe":
                    os.mkfifo(path)
                else:
                    path.write_bytes(PNG if what == "file" else b"junk")
            except (OSError, ValueError):  # names that exist, or that the file system refuses
                continue
            made += [path.parent, path]
        try:
            stat_digest(folder)
            loaded = load_local(f"path:{folder}")
        except ConfigError as error:
            loaded = str(error)
        if isinstance(loaded, str):
            assert "\n" not in loaded.encode().decode()
        else:
            for part in loaded.values():
                "".join([*part.class_names, *map(part.name_of, range(len(part)))]).encode()
                assert part.labels is None or len(part.labels) == len(part)
