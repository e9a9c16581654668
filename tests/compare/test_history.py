import json

from fedddpm_app.compare.history import read_left_out
from fedddpm_app.recording.layout import STATS


def test_the_clients_left_out_are_those_of_all_rows(tmp_path):
    rows = [
        {"phase": "pretrain", "pretrain/left_out": {"10": "its budget is spent", "2": "no images"}},
        {"phase": "round", "round": 1, "train/left_out": {"7": "no answer"}},
        {"phase": "round", "round": 2, "train/left_out": {"1": "no answer", "7": "no answer"}, "aux/num_images": 5},
    ]
    (tmp_path / STATS).write_text("\n".join(map(json.dumps, rows)))
    assert read_left_out(tmp_path) == {"pretrain": ["2", "10"], "train": ["1", "7"]}


def test_clients_without_an_effect_on_the_models_are_not_named(tmp_path):
    rows = [
        {"phase": "abandoned", "round": 1, "train/left_out": {"3": "no answer"}},
        {"phase": "round", "round": 1, "client-eval/left_out": {"1": "no answer"}},
        {"phase": "auxiliary", "generate/left_out": {"2": "killed"}},
    ]
    (tmp_path / STATS).write_text("\n".join(map(json.dumps, rows)))
    assert read_left_out(tmp_path) == {}


def test_a_run_with_all_its_clients_left_none_out(tmp_path):
    (tmp_path / STATS).write_text(json.dumps({"phase": "round", "round": 1, "clients": [0, 1]}))
    assert read_left_out(tmp_path) == {}
