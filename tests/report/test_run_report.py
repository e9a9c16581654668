"""The report of a run: what it shows, what it must not show, and files that are missing, damaged or hostile."""

import json
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.cli import report as command
from fedddpm_app.config import changed_keys, default_run_config, kinds_of_keys, read_overrides
from fedddpm_app.report.blocks import Chart, Page, Picture, Table
from fedddpm_app.report.run import run_page
from fedddpm_app.report.saving import LARGEST_BYTES, render, save_page
from fedddpm_app.report.settings import command_of
from tests.report.conftest import ATTACK, append, change

pytestmark = pytest.mark.usefixtures("without_library")


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [about for name, about in self.found if name == tag]


def blocks(page: Page, kind: type) -> Iterator:
    return (block for section in page.sections for block in section.blocks if isinstance(block, kind))


def chart(page: Page, start: str) -> Chart:
    return next(block for block in blocks(page, Chart) if block.title.startswith(start))


def call(*arguments: str):
    return CliRunner().invoke(app, ["report", *arguments])


def test_shows_every_part_of_a_run(run: Path) -> None:
    page = run_page(run)
    titles = {section.title for section in page.sections if section.blocks}
    assert titles >= {"Result", "Who holds what", "Losses and metrics", "Images: real, auxiliary, generated"}
    assert titles >= {"Decisions and other values", "Communication and time", "Faults and refusals", "Configuration"}
    rounds = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    losses = chart(page, "Denoising loss").table
    column = losses.headings.index("clients, during training")
    shown = [float(row[column]) for row in losses.rows if row[column] != "–"]
    assert shown == pytest.approx([row["train/loss"] for row in rounds if "train/loss" in row], rel=1e-3)
    corrected = [row["round"] for row in rounds if "correct/steps" in row]
    assert [int(row[0]) for row in losses.rows if row[-1] == "yes"] == corrected != []
    assert {block.title for block in blocks(page, Picture)} >= {"Real images (test split)", "Auxiliary set, client 0"}
    assert "fd-classifier ↓ lower is better" in {block.title for block in blocks(page, Chart)}
    assert chart(page, "FedDDPM+").table.rows
    assert all(block.alt and block.table.rows for block in blocks(page, Chart))


def test_the_command_gives_the_same_config(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())["run_config"]
    *_, text = shlex.split(command_of(config))
    assert read_overrides("-c", [text], kinds_of_keys()).values == changed_keys(config)
    assert next(blocks(run_page(run), Table)).headings  # the final metrics
    settings = next(block for block in blocks(run_page(run), Table) if block.caption.startswith("Keys that differ"))
    assert {row[0] for row in settings.rows} == set(changed_keys(config))
    assert command_of(default_run_config()) == "fedddpm run"


def test_round_0_does_not_flatten_the_losses(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    lines.insert(0, {"phase": "initial", "round": 0, "eval/loss": 1e5})
    (run / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = chart(run_page(run), "Denoising loss")
    low, high = found.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    losses = [row["train/loss"] for row in lines if "train/loss" in row]
    assert low < min(losses) < max(losses) < high < 10
    assert "Round 0 (untrained) is above the plot" in found.note
    append(run, phase="round", round=4, **{"eval/loss": 1e5})
    assert "domain" not in chart(run_page(run), "Denoising loss").spec["layer"][0]["encoding"]["y"]["scale"]


def test_texts_of_a_run_are_data(run: Path) -> None:
    about = json.loads((run / "config.json").read_text())
    change(run / "config.json", run_config=about["run_config"] | {"dataset": ATTACK, ATTACK: 1}, git_commit=ATTACK)
    before = Elements(render(run_page(run)))
    append(run, phase=ATTACK, round=1, **{ATTACK: ATTACK, "train/left_out": {ATTACK: ATTACK}, "time/train_s": 1.0})
    change(run / "summary.json", error=ATTACK)
    (run / "security.jsonl").write_text(json.dumps({"event": "declined", "reason": ATTACK}) + "\n")
    html = render(run_page(run))
    page = Elements(html)
    assert ATTACK not in html
    assert len(page.of("script")) - len(page.of("figure")) == len(before.of("script")) - len(before.of("figure"))
    assert all((image["src"] or "").startswith("data:image/") for image in page.of("img"))
    policy = next(about["content"] or "" for about in page.of("meta") if "http-equiv" in about)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]
    assert "&lt;/script&gt;" in html


def test_names_no_place(run: Path) -> None:
    about = json.loads((run / "config.json").read_text())
    change(run / "config.json", run_config=about["run_config"] | {"dataset": "path:/home/alice/secret/scans"})
    change(run / "summary.json", error="/home/alice/secret/scans cannot be read", owner={"pid": 1, "host": "ward-3"})
    html = render(run_page(run))
    assert "alice" not in html
    assert str(run.parent) not in html
    assert "ward-3" not in html
    assert "path:scans" in html


def test_closest_pairs_only_if_asked(run: Path) -> None:
    (run / "samples" / "closest-pairs.png").write_bytes(next((run / "samples").glob("real.png")).read_bytes())
    assert not any("Closest pairs" in block.title for block in blocks(run_page(run), Picture))
    assert any("Closest pairs" in block.title for block in blocks(run_page(run, pairs=True), Picture))


@pytest.mark.parametrize("name", ["stats.jsonl", "config.json", "summary.json", "samples/real.png", "security.jsonl"])
def test_damaged_files_leave_their_part_out(run: Path, name: str) -> None:
    (run / name).write_bytes(b'{"half": [1, \xff')
    assert "Configuration" in render(run_page(run))
    (run / name).unlink()
    assert "Configuration" in render(run_page(run))


@pytest.mark.parametrize("value", [None, "x", [], {}, -1, 1e308, 10**400, True, [[1], [2, 3]], {"0": {"a": 1}}])
def test_odd_values_leave_their_part_out(run: Path, value: object) -> None:
    keys = ("data/label_counts", "data/num_examples", "data/classes", "train/loss", "eval/metrics", "train/left_out")
    keys += ("comm/up_mb", "time/train_s", "plus/signal", "correct/steps", "vote/local_loss", "compute/steps", "round")
    (run / "stats.jsonl").write_text(json.dumps({"phase": "data", **dict.fromkeys(keys, value)}) + "\n")
    append(run, **{"phase": "round", **dict.fromkeys(keys, value)})
    append(run, phase=value)
    change(run / "summary.json", metrics=value, **{"time/total_s": value})
    (run / "audit.json").write_text(json.dumps({"attacks": value, "copies": value}))
    assert "Configuration" in render(run_page(run))


@pytest.mark.parametrize("name", ["stats.jsonl", "config.json", "summary.json"])
def test_nested_values_leave_their_part_out(run: Path, name: str) -> None:
    (run / name).write_text(f'{{"phase": "round", "run_config": {"[" * 900 + "]" * 900}}}')
    assert "Faults and refusals" in render(run_page(run))


def test_the_command_is_what_a_reader_sees() -> None:
    keys = {"dataset": "a\u202eb\x9b31m", "evil\x03\nrm -rf ~": 1, "seed": 3, "num-rounds": [1]}
    command_line = command_of(default_run_config() | keys)
    assert command_line.isprintable()
    *_, text = shlex.split(command_line)
    assert read_overrides("-c", [text], kinds_of_keys()).values == {"dataset": keys["dataset"], "seed": 3}


def test_a_link_out_of_the_run_is_not_followed(run: Path, tmp_path: Path) -> None:
    (run / "samples" / "real.png").rename(tmp_path / "mine.png")
    (run / "samples" / "real.png").symlink_to(tmp_path / "mine.png")
    page = run_page(run)
    assert "Real images (test split)" not in {block.title for block in blocks(page, Picture)}
    assert "real.png is a link to another folder" in render(page)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"algorithm": "fedddpm"}, "The server also got each client&#39;s own model"),
        ({"algorithm": "local-only"}, "Clients exchanged nothing in training"),
        ({"algorithm": "mixture"}, "The server got each client&#39;s own model"),
        ({"algorithm": "centralized"}, "this training keeps nothing private"),
        ({"algorithm": "my:Own"}, "its own code says what clients send"),
        ({"algorithm": "fedavg", "seed": "x"}, "docs/privacy.md says what leaves the clients"),
    ],
)
def test_says_what_left_the_clients(run: Path, keys: dict[str, object], sentence: str) -> None:
    about = json.loads((run / "config.json").read_text())
    change(run / "config.json", run_config=about["run_config"] | keys)
    assert sentence in render(run_page(run))


def test_without_a_global_model_each_client_has_its_values(run: Path) -> None:
    own = {"name": "fd-x", "value": 2.5, "std": 0.5, "clients": [2, 3], "client_names": ["client-0000", "client-0003"]}
    change(run / "summary.json", metrics=[own])
    table = next(block for block in blocks(run_page(run), Table) if block.caption == "Each client's own model")
    assert table.rows == [["client-0000", "2"], ["client-0003", "3"]]


def test_large_runs_stay_small(run: Path, tmp_path: Path) -> None:
    counts = [[k % 7] * 100 for k in range(3_000)]
    append(run, phase="data", **{"data/label_counts": counts, "data/num_examples": [600] * 3_000, "data/classes": []})
    for k in range(800):
        append(run, phase="round", round=k, **{"train/loss": 0.1 + 1 / (k + 1), "time/train_s": 1.0, "comm/up_mb": 1.0})
    assert save_page(run_page(run), tmp_path / "report.html") < LARGEST_BYTES - 1_000_000  # which the library needs
    for k in range(30):
        append(run, phase="round", round=800, **{f"group{k}/{j}": "long text " * 6_000 for j in range(3)})
    assert save_page(run_page(run), tmp_path / "report.html") < LARGEST_BYTES


def test_the_command_writes_a_private_file_and_follows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(run / "summary.json", status="running")
    monkeypatch.setattr(command, "_is_over", lambda folder: command.read_status(folder).is_final)
    monkeypatch.setattr("fedddpm_app.recording.status.has_died", lambda *_: False)
    seen = []

    def wait(_: float) -> None:
        seen.append('http-equiv="refresh"' in (run / "report.html").read_text())
        change(run / "summary.json", status="completed")

    monkeypatch.setattr(command.time, "sleep", wait)
    result = call(str(run), "--follow")
    assert result.exit_code == 0, result.output
    assert seen == [True]
    assert 'http-equiv="refresh"' not in (run / "report.html").read_text()
    assert (run / "report.html").stat().st_mode & 0o777 == 0o600


def test_other_folders_are_refused(tmp_path: Path, run: Path) -> None:
    refused = call(str(tmp_path))
    assert refused.exit_code == 2
    assert "neither a run (config.json) nor a comparison (results.json)" in refused.output.replace("\n", " ")
    assert call(str(run), "--out", str(tmp_path)).exit_code == 2
