"""The lines of security logs have no paths, and digests of code depend on each file's name and content."""

import json

import pytest

from fedddpm_app.disk.code import code_digest, settings_digest
from fedddpm_app.disk.security import append_entry, entry_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("its state is lost: /home/ann/state/client-0001.safetensors does not exist", "<path> does not exist"),
        ("data-path = ~/images/patient 7: no folder", "data-path = <path> 7: no folder"),
        ('dataset = "path:/data/x": unreadable', "dataset = <path>: unreadable"),
        ("../state/x.png is broken", "<path> is broken"),
        ("'Ann Smith.PNG' is broken", "<file>' is broken"),
        (r"C:\Users\ann\scan.png is broken", "<path> is broken"),
        ("min-replies = 1/2 of 3 and/or epsilon 0.5", "min-replies = 1/2 of 3 and/or epsilon 0.5"),
    ],
)
def test_a_text_has_no_path(text, expected):
    entry = entry_of("declined", {"reason": text, "reasons": {"1": [text]}})
    assert entry["reason"].endswith(expected)
    assert entry["reasons"]["1"] == [entry["reason"]]


def test_a_text_is_cut():
    assert len(entry_of("x", {"reason": "y" * 10_000_000})["reason"]) == 300


def test_lines_are_appended_and_a_link_is_not_followed(tmp_path):
    path = tmp_path / "folder" / "log.jsonl"
    for event in ("a", "b"):
        append_entry(path, entry_of(event, {}))
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["a", "b"]
    assert path.stat().st_mode & 0o077 == 0
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        append_entry(link, entry_of("c", {}))


def test_a_digest_changes_with_a_name_or_a_byte(tmp_path):
    def digest(**files):
        folder = tmp_path / "-".join([*files, *files.values()])
        folder.mkdir()
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)
        return code_digest(folder)

    found = [digest(a="x", b="y"), digest(a="x", c="y"), digest(a="x", b="z"), digest(a="x")]
    assert len(set(found)) == 4
    assert settings_digest({"a": 1, "b": 2.0}) == settings_digest({"b": 2.0, "a": 1}) != settings_digest({"a": 1})
