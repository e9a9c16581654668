"""`fedddpm data inspect`, and the settings that `fedddpm data export` prints."""

import pytest
from PIL import Image
from typer.testing import CliRunner

from fedddpm_app.cli import app
from tests.conftest import ROOT

runner = CliRunner()


@pytest.fixture
def inspect(tmp_path, cache_dir):
    def run(run_config=""):
        config = f'cache-dir="{cache_dir}" {run_config}'
        out = ["--out", str(tmp_path / "plots" / "partition.png")]
        return runner.invoke(app, ["data", "inspect", "--app", str(ROOT), "-c", config, *out], env={"COLUMNS": "100"})

    return run


def test_splits_and_the_label_table_are_printed_and_drawn(inspect, tmp_path):
    result = inspect('partition="disjoint-classes" num-clients=4')
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split()[1:] for line in result.output.splitlines() if line.strip()}
    assert rows["train"][:4] == ["1,437", "1,437", "0", "10"]
    assert rows["test"][0] == "360"
    clients = [rows[str(k)] for k in range(4)]
    for images, held_out, *counts in clients:
        assert int(images) == sum(int(c) for c in counts if c != "·")
        assert round((int(images) + int(held_out)) / 10) == int(held_out)
        assert sum(c != "·" for c in counts) in (2, 3)
    assert sum(int(client[0]) + int(client[1]) for client in clients) == 1437
    assert Image.open(tmp_path / "plots" / "partition.png").width > 300


def test_without_labels_there_is_a_size_for_every_client(inspect, tmp_path):
    from tests.data.conftest import noise, table_of

    table_of(noise(40)).to_parquet(tmp_path / "train.parquet")
    result = inspect(f'dataset="path:{tmp_path}" partition="iid" num-clients=2')
    assert result.exit_code == 0, result.output
    assert "no labels" in result.output


def test_many_classes_are_counted_instead_of_listed(inspect, tmp_path):
    from tests.data.conftest import noise, table_of

    table_of(noise(100), [k % 50 for k in range(100)]).to_parquet(tmp_path / "train.parquet")
    result = inspect(f'dataset="path:{tmp_path}" partition="iid" num-clients=2 num-classes=50')
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines()[:-1])) <= 100  # the last line is a command


@pytest.mark.parametrize(
    ("run_config", "says"),
    [
        ('dataset="path:/nowhere"', "there is no such folder"),
        ("num-clients=11", "use fewer clients"),
        ('partition="by-moon"', "partition = 'by-moon' cannot be used"),
        ("partition", "has no value"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(inspect, run_config, says):
    result = inspect(run_config)
    assert result.exit_code == 2
    assert says in result.output
    assert "Traceback" not in result.output


def test_the_settings_that_an_export_prints_read_it(inspect, tmp_path, cache_dir):
    for row in range(12):
        folder = tmp_path / "two" / ("cat" if row % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * row).save(folder / f"{row}.png")
    data = f'dataset="path:{tmp_path / "two"}" num-classes=2 num-clients=2 min-partition-size=2 partition="iid"'
    config = f'cache-dir="{cache_dir}" {data}'
    export = ["data", "export", str(tmp_path / "sites"), "--app", str(ROOT), "-c", config]
    printed = runner.invoke(app, export, env={"COLUMNS": "500"})
    assert printed.exit_code == 0, printed.output
    settings = " ".join(printed.output.partition("--run-config '")[2].partition("'")[0].split())
    result = inspect(settings)
    assert result.exit_code == 0, result.output
    first = str(tmp_path / "sites" / "site-0000")
    alone = runner.invoke(app, ["data", "site", first, "--app", str(ROOT), "-c", f'{config} class-names="cat,dog"'])
    assert alone.exit_code == 0, alone.output
    assert "this site trains on" in alone.output  # without partition = "sites", which the command means
