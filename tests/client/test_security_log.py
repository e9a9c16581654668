"""What the security logs of a site and of the server say of a run."""

import json
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from fedddpm_app.client.security_log import SiteLog
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.training.declined import DeclinedError


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_site_and_the_server_log_the_same_code_and_settings_and_what_the_site_declined(
    run_app, run_config, tmp_path, monkeypatch
):
    """Only client 1 is a site: it has a policy."""
    original = InProcessGrid.__init__

    def create(self, *arguments):
        original(self, *arguments)
        self.contexts[1001].node_config |= {"site-max-rounds": 1, "state-dir": str(tmp_path / "site")}

    monkeypatch.setattr(InProcessGrid, "__init__", create)
    run = run_app(algorithm="fedavg")
    server = lines_of(run.path / "security.jsonl")
    assert [line["event"] for line in server] == ["started", "joined", "declined"]
    assert server[1]["nodes"] == {str(client): str(1000 + client) for client in range(4)}
    reason = "this site does not train in round 2: site-max-rounds = 1"
    assert [server[2][key] for key in ("partition", "round", "reason")] == [1, 2, reason]
    (path,) = (tmp_path / "site" / "security").iterdir()
    site = lines_of(path)
    assert [line["event"] for line in site] == ["joined", "declined"]
    assert [site[1][key] for key in ("asked", "round", "reason")] == ["train", 2, reason]
    for key in ("config_sha256", "code_sha256", "versions"):
        assert site[0][key] == server[0][key]
    assert str(tmp_path) not in path.read_text() + (run.path / "security.jsonl").read_text()


def test_refused_replies_are_logged_without_paths(run_app, monkeypatch):
    original = InProcessGrid._answer

    def answer(self, message):
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 1002:
            return Message(Error(2, "<class 'OSError'>:<'cannot read /data/scans/patient-7.png'>"), reply_to=message)
        return original(self, message)

    monkeypatch.setattr(InProcessGrid, "_answer", answer)
    run = run_app(algorithm="fedavg", num_rounds=1)
    (refused,) = (line for line in lines_of(run.path / "security.jsonl") if line["event"] == "reply-refused")
    assert (refused["partition"], refused["round"], refused["reason"]) == (2, 1, "OSError: cannot read <path>")


@pytest.mark.parametrize(
    "asked",
    [
        {"server-round": b"1"},
        {"server-round": [1] * 100_000},
        {"server-round": '1}\n{"event": "forgot"'},
        {"server-round": float("nan")},
        {},
        {"server-round": 10**18, "state-run": "no number"},
        {"state-run": b"7"},
        {"state-run": "9" * 300},
    ],
)
def test_no_message_of_a_server_keeps_a_line_out_of_a_sites_log(tmp_path, asked):
    """The first message is that in which a site writes that it has joined."""
    node = {"partition-id": 0, "site-max-rounds": 1, "state-dir": str(tmp_path)}
    context = Context(run_id=7, node_id=1, node_config=node, state=RecordDict(), run_config={"algorithm": "fedavg"})
    about = ConfigRecord({"server-round": 1, "state-run": "7"} | asked if asked else {})
    log = SiteLog(Message(RecordDict({"config": about}), 1, "train"), context, 0)
    log.join()
    log.failed(DeclinedError("no"))
    (path,) = (tmp_path / "security").iterdir()
    assert path.name == "run-7.jsonl"
    lines = lines_of(path)
    assert [line["event"] for line in lines] == ["joined", "declined"]
    assert all(line["round"] is None or isinstance(line["round"], int) for line in lines)
    assert path.stat().st_size < 2_000
