"""`fedddpm ledger` on ledgers made by hand."""

import pytest
from PIL import Image
from typer.testing import CliRunner

from fedddpm_app.cli import app
from tests.peers.stories import STORY, build, write


def answer(run):
    result = CliRunner().invoke(app, ["ledger", str(run)], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "ledger.jsonl", build()[1])
    return tmp_path


def test_a_valid_ledger_is_summed_up_and_drawn(run):
    code, text = answer(run)
    assert code == 0, text
    assert "0 3 15 3 1 1 1 2 10 2 0 1" in text  # peer, submissions, steps, votes, chosen by itself, by others
    assert "best by Q-N: submission 1 of peer 0 (a1), Q-N 1.5, distance 2.5, means of 2 votes" in text
    assert "best by distance alone: submission 2 of peer 1 (b2), Q-N 25.5, distance 1, means of 1 vote" in text
    assert "18 entries, the chain is valid" in text
    with Image.open(run / "plots" / "provenance.png") as picture:
        assert picture.width > 500


def test_a_forged_ledger_is_named_by_its_line_and_not_drawn(run):
    path = run / "ledger.jsonl"
    path.write_text(path.read_text().replace('"novelty": 1.0', '"novelty": 0.0', 1))  # in line 5
    code, text = answer(run)
    assert code == 1
    assert "is not valid: line 5 was changed: its hash is not that of its content." in text
    assert not (run / "plots").exists()


def test_an_unfinished_line_is_named_and_left_out(run):
    path = run / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    code, text = answer(run)
    assert code == 0
    assert "line 18 is unfinished" in text
    assert "fedddpm run --resume" in text
    assert "17 entries, the chain is valid" in text


def test_a_ledger_without_submissions_has_no_picture(tmp_path):
    write(tmp_path / "ledger.jsonl", build(STORY[:3])[1])
    code, text = answer(tmp_path)
    assert code == 0
    assert "best by Q-N: nobody voted" in text
    assert not (tmp_path / "plots").exists()


def test_other_folders_are_refused(tmp_path):
    code, text = answer(tmp_path)
    assert code == 2
    assert "there is no ledger.jsonl in it; give the directory of a run" in text
    (tmp_path / "ledger.jsonl").touch()
    assert answer(tmp_path) == (1, f"{tmp_path / 'ledger.jsonl'} is not valid: line 1 is missing: "
                                   "a ledger starts with a genesis.")  # fmt: skip
