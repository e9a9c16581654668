import json
from importlib import metadata
from types import SimpleNamespace

import pytest

from fedddpm_app.recording.provenance import overrides_of, source_folder


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        ([], {}),
        (["--run-config", 'seed=1 algorithm="fedavg"'], {"seed": 1, "algorithm": "fedavg"}),
        (["-c", "seed=1", "--run-config=num-rounds=2"], {"seed": 1, "num-rounds": 2}),
        (["--run-config", "conf/mine.toml"], {"seed": 7}),
        (["--run-config", "conf/none.toml"], None),
        (["--run-config", "seed=unquoted"], None),
    ],
)
def test_overrides_are_read_from_the_callers_command_line_and_folder(tmp_path, arguments, overrides):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.toml").write_text("seed = 7\n")
    assert overrides_of(["/bin/flwr", "run", ".", "--stream", *arguments], tmp_path) == overrides


@pytest.mark.parametrize(
    ("url", "folder"), [("file:///my%20app", "my app"), ("https://example.org/app.whl", None), (None, None)]
)
def test_the_source_is_the_clone_of_the_code_that_runs_and_else_what_pip_installed(tmp_path, monkeypatch, url, folder):
    origin = SimpleNamespace(read_text=lambda name: json.dumps({"url": url}) if url else None)
    monkeypatch.setattr(metadata, "distribution", lambda name: origin)
    copy, clone = tmp_path / "copy" / "fedddpm_app", tmp_path / "clone" / "fedddpm_app"
    (clone.parent / ".git").mkdir(parents=True)
    assert source_folder(clone) == clone.parent
    if folder:
        assert source_folder(copy).name == folder
    else:
        with pytest.raises(ValueError, match="not installed from a folder"):
            source_folder(copy)
