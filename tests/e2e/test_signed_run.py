"""A site that runs signed apps only: a real SuperLink and SuperNode, and a stand-in for Flower Hub."""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign, generate_key_pair, sign_message

from fedddpm_app.launch.simulation import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
BIN = Path(sys.executable).parent
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "asks"
version = "1.0.0"
description = "Asks a node."
license = { text = "Apache-2.0" }
dependencies = []
[tool.flwr.app]
publisher = "lab"
[tool.flwr.app.components]
serverapp = "asks:server"
clientapp = "asks:client"
"""
APP = """
import time
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
server = ServerApp()
client = ClientApp()

@client.query()
def answer(message, context):
    return Message(RecordDict(), reply_to=message)

@server.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    [reply] = grid.send_and_receive([Message(RecordDict(), nodes[0], "query")], timeout=60)
    print("THE SITE SAYS:", reply.error.reason if reply.has_error() else "done")
"""


@pytest.fixture
def app(tmp_path):
    folder = tmp_path / "asks"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "asks.py").write_text(APP)
    return folder


@contextlib.contextmanager
def hub(fab, private):
    """What the SuperLink asks Flower Hub for: an app, and the reviews of it."""
    signed_at = 1_790_000_000
    signature = sign_message(private, create_message_to_sign(hashlib.sha256(fab).digest(), signed_at))
    text = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, content):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            review = {"public_key_id": "fpk_officer", "signature": text, "signed_at": signed_at}
            self.answer(json.dumps({"fab_url": f"{url}/fab", "verifications": [review]}).encode())

        def do_GET(self):
            self.answer(fab)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield url
        server.shutdown()


def test_a_site_runs_the_app_that_its_officer_signed_and_no_other(app, tmp_path):
    """The app from the Hub, and then the same app from a folder, which nobody signed."""
    private, public = generate_key_pair()
    key = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    (tmp_path / "trusted.yml").write_text(f"fpk_officer: '{key}'\n")
    port = free_port()
    (tmp_path / "config.toml").write_text(f'[superlink.lab]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    with contextlib.ExitStack() as ending, hub(build_fab_from_disk(app), private) as url:
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "COLUMNS": "200"}
        path = f"{BIN}:{os.environ['PATH']}"
        env = os.environ | quiet | {"FLWR_HOME": str(tmp_path), "FLWR_SUPERGRID_API_URL": url, "PATH": path}

        def start(*words):
            log = ending.enter_context((tmp_path / f"{words[0]}.log").open("w"))
            process = subprocess.Popen(words, env=env, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
            ending.callback(process.wait, 60)
            ending.callback(process.terminate)

        start("flower-superlink", "--insecure", f"--port={port}", "--disable-runtime-dependency-installation")
        node = ("flower-supernode", "--insecure", f"--superlink=127.0.0.1:{port}", f"--port={free_port()}")
        start(*node, f"--trusted-entities={tmp_path / 'trusted.yml'}")

        def says(*words):
            until = time.monotonic() + 60
            while True:  # the SuperLink may not be up
                done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
                if "THE SITE SAYS" in done.stdout or time.monotonic() > until:
                    return done.stdout + done.stderr

        assert "THE SITE SAYS: done" in says("flwr", "run", "@lab/asks", "lab", "--stream")
        assert "THE SITE SAYS: The FAB could not be verified." in says("flwr", "run", str(app), "lab", "--stream")
