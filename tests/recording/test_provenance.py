import pytest

from fedddpm_app.recording.provenance import overrides_of


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
