"""The push to the hub, over HTTP to a stand-in of its API: a private repository gets exactly the folder's files."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.config import ConfigError
from fedddpm_app.export.hub import PushError, check_push, push


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for small files; what it got is in ``server.got``."""

    def log_message(self, *_):
        pass

    def answer(self, code, content):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        got, body = self.server.got, self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer hf_secret":
            return self.answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            got["made"] = json.loads(body)
            taken = got["made"]["name"] == "taken"
            return self.answer(409 if taken else 200, {"url": f"{self.server.url}/me/{got['made']['name']}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if self.path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            got["files"] = {each["path"]: base64.b64decode(each["content"]) for each in files}
            return self.answer(
                200, {"commitUrl": f"{self.server.url}/me/model/commit/0", "commitOid": "0", "commitMessage": ""}
            )
        return self.answer(404, {"error": self.path})

    def do_GET(self):
        self.answer(200, {"sha": "0" * 40, "id": "me/model", "siblings": []})


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.got, server.url = {}, f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("public", [False, True])
def test_an_exported_folder_is_pushed_as_it_is(hub, shared_run, tmp_path, public):
    options = ["--samples", "2", "--push", "me/model", *(["--public"] if public else [])]
    run = shared_run(num_rounds=1).path
    result = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "model"), *options])
    assert result.exit_code == 0, result.output
    assert f"{'public' if public else 'private'} repository: {hub.url}/me/model" in result.output
    folder = tmp_path / "model"
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.got["files"] == files
    assert "README.md" in files
    made = hub.got["made"]  # newer versions of the library say it by "visibility"
    assert made.get("visibility", "private" if made.get("private") else "public") == ("public" if public else "private")
    assert 'from_pretrained("me/model")' in files["README.md"].decode()


def test_what_the_hub_refuses_is_one_sentence(hub, tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("# model")
    with pytest.raises(PushError, match="there is such a repository already; give another name"):
        push(tmp_path, "me/taken", public=False)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PushError, match=r"the hub refuses it .* rights of your token"):
        push(tmp_path, "me/model", public=False)


def test_no_network_and_no_token_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(PushError, match="the hub does not answer"):
        push(tmp_path, "me/model", public=False, endpoint="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="is not the name of a repository"):
        check_push("not a name")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="hf auth login"):
        check_push("me/model")
