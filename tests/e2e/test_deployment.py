"""The compose files of docker/, as they stand, without Docker: see ``compose``."""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml
from datasets import load_from_disk

from benchmarks.models import LARGE, MODELS
from fedddpm_app.config import load_config
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.data.export import export_sites
from fedddpm_app.launch.flower_run import to_toml
from tests.conftest import ROOT, TINY, RunDirectory
from tests.e2e.compose import Stack
from tests.e2e.hosts import SERVER, cut, inside, join, network

CLASSES = ",".join(str(k) for k in range(10))
SITES = {"partition": "sites", "class-names": CLASSES, "num-clients": 2, "node-timeout": 90.0}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def docker(tmp_path, run_config):
    """A copy of docker/, two sites' images, and a server's test split, each in a folder of its own."""
    folder = tmp_path / "docker"
    shutil.copytree(ROOT / "docker", folder)
    export_sites(open_dataset(load_config(run_config | {"num-clients": 2}).data, 0), tmp_path / "sites")
    (tmp_path / "server").mkdir()
    shutil.copytree(tmp_path / "sites" / "test", tmp_path / "server" / "test")
    places = {"/srv/fedddpm/server": "server", "/srv/fedddpm/sites": "sites"}
    example = (folder / ".env.example").read_text()
    for path, name in places.items():
        assert path in example
        example = example.replace(path, str(tmp_path / name))
    (folder / ".env").write_text(example)
    return folder


@pytest.fixture
def started(docker, tmp_path):
    """Start a compose file; what it started ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(file):
            services = Stack(docker / file, tmp_path / "stack", docker / ".env", confined=can_confine())
            stack.callback(services.down)
            services.up()
            return services

        yield start


def make_certificates(folder, name, *sites):
    for words in (("server", name), *(("site", site) for site in sites)):
        subprocess.run(["./certs.sh", *words], cwd=folder, check=True, capture_output=True)
    return folder / "certs"


@pytest.fixture
def certificates(docker):
    return make_certificates(docker, "localhost", "site-0", "site-1")


@pytest.fixture
def laptop(tmp_path):
    """A user's machine: a folder, and Flower's config with a connection to a SuperLink."""
    home = tmp_path / "laptop"
    home.mkdir()

    class Laptop:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"FLWR_HOME": str(home / "flwr"), "COLUMNS": "200", "PATH": path}
        folder = home

        def connect(self, address, certificate=None):
            (home / "flwr").mkdir(exist_ok=True)
            how = f'root-certificates = "{certificate}"' if certificate else "insecure = true"
            text = f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "{address}"\n{how}\n'
            (home / "flwr" / "config.toml").write_text(text)

        def command(self, *arguments):
            return [sys.executable, "-m", "fedddpm_app.cli", *arguments]

        def run(self, settings, *options):
            start = self.command("run", "--app", str(ROOT), "--superlink", "lab", "--run-config", to_toml(settings))
            start += options
            return subprocess.Popen(
                start, cwd=home, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )

        def call(self, *arguments):
            return subprocess.run(
                arguments, cwd=home, env=self.environment, capture_output=True, text=True, timeout=120, check=False
            )

    return Laptop()


def can_confine():
    """Whether services can have the rights of their containers here, which takes those of root."""
    try:
        return subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def settings_of(tmp_path, **overrides):
    changes = {key.replace("_", "-"): value for key, value in overrides.items()}
    server = {"dataset": f"path:{tmp_path / 'server'}", "output-dir": "runs", "run-name": "deployed"}
    return TINY | SITES | server | changes


def in_simulation(run_app, tmp_path, **overrides):
    sites = {key.replace("-", "_"): value for key, value in SITES.items()}
    return run_app(**sites, dataset=f"path:{tmp_path / 'sites'}", **overrides)


@pytest.mark.long
@pytest.mark.parametrize(("file", "transport"), [("compose.yml", "auto"), ("compose.tls.yml", "flat")])
def test_a_compose_file_runs_fedddpm_as_the_simulation_does(
    file, transport, started, laptop, tmp_path, run_app, request
):
    certificate = None
    if file == "compose.tls.yml":
        certificate = request.getfixturevalue("certificates") / "user" / "ca.crt"
    stack = started(file)
    laptop.connect(stack.published("superlink"), certificate)
    process = laptop.run(settings_of(tmp_path, transport=transport))
    output, _ = process.communicate(timeout=420)
    assert process.returncode == 0, output + stack.logs()
    for shown in ("pretrain  client 1", "round 2/2 train     client 0", "deployed: completed"):
        assert shown in output, output
    there = stack["serverapp"].mounted("/results") / "runs" / "deployed"
    assert f"on the server's host: {there}" in output
    here = RunDirectory(laptop.folder / "runs" / "deployed")
    assert files_of(here.path) == files_of(there) | {"log.txt"}
    simulated = in_simulation(run_app, tmp_path)
    assert here.losses() == simulated.losses()
    assert here.phases() == simulated.phases()
    for name in ("checkpoints/round-0002/model.safetensors", "checkpoints/round-0002/ema.safetensors"):
        assert (here.path / name).read_bytes() == (simulated.path / name).read_bytes()
    images = [load_from_disk(str(run.path / "auxiliary" / "dataset"))["image"] for run in (here, simulated)]
    assert [image.tobytes() for image in images[0]] == [image.tobytes() for image in images[1]]


@pytest.mark.long
@pytest.mark.timeout(1000)
def test_a_site_that_keeps_its_model_takes_part_by_its_images(docker, certificates, started, laptop, tmp_path, run_app):
    """In mode "models" its policy leaves it out of D_aux, and it trains; in mode "images" it is in both."""
    with (docker / ".env").open("a") as env:
        env.write("\nSITE_1_POLICY=site-shares-models=false\n")  # pragma: allowlist secret
    stack = started("compose.tls.yml")
    laptop.connect(stack.published("superlink"), certificates / "user" / "ca.crt")
    output, _ = laptop.run(settings_of(tmp_path, run_name="models")).communicate(timeout=420)
    run = RunDirectory(laptop.folder / "runs" / "models")
    sentence = "this site shares no model of its own"
    pretraining = next(row for row in run.stats if row["phase"] == "pretrain")
    assert sentence in pretraining["pretrain/left_out"]["1"], output + stack.logs()
    assert sentence in output
    assert sentence in stack["clientapp-1"].log
    clients = load_from_disk(str(run.path / "auxiliary" / "dataset"))["client"]
    assert set(clients) == {0}
    assert all(sorted(row["train/client_loss"]) == ["0", "1"] for row in run.rounds())

    images = {"auxiliary_sharing": "images", "memorization_check": "never"}
    process = laptop.run(settings_of(tmp_path, run_name="images", **images))
    output, _ = process.communicate(timeout=420)
    assert process.returncode == 0, output + stack.logs()
    here = RunDirectory(laptop.folder / "runs" / "images")
    simulated = in_simulation(run_app, tmp_path, **images)
    assert here.losses() == simulated.losses()
    sets = [load_from_disk(str(each.path / "auxiliary" / "dataset")) for each in (here, simulated)]
    assert sets[0]["client"] == sets[1]["client"]
    assert set(sets[0]["client"]) == {0, 1}
    assert [image.tobytes() for image in sets[0]["image"]] == [image.tobytes() for image in sets[1]["image"]]


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def gateway(docker, tmp_path):
    """The server's host without its ServerApp: SuperLink and gateway, with the key of a site registered."""
    certificates = make_certificates(docker, "127.0.0.2", "site-0")
    shutil.copytree(certificates / "server", docker / "server" / "certs")
    fill(docker / "server", {"SERVER_DATA": tmp_path / "server"})
    stack = Stack(docker / "server" / "compose.yml", tmp_path / "server-stack", docker / "server" / ".env")
    if with_gateway(stack) != "gateway":
        pytest.skip("nginx is not installed")
    stack.hosts["gateway"] = "127.0.0.2"
    try:
        for name in ("superlink", "gateway", "register"):
            stack[name].start()
            stack[name].wait()
        yield stack
    finally:
        stack.down()


def test_a_site_can_neither_start_runs_nor_register_nodes(gateway, docker, laptop, tmp_path):
    """With the authority's certificate and the address that it has; its SuperNode works through that address."""
    authority = docker / "certs" / "user" / "ca.crt"
    make_key(tmp_path / "other")
    register = ("flwr", "supernode", "register", f"{tmp_path / 'other'}.pub", "lab")
    laptop.connect(gateway.published("gateway"), authority)
    assert laptop.call(*register).returncode == 1
    control = "control/list-runs"
    for path in (
        control,
        f"fleet/../{control}",
        f"fleet/%2e%2e/{control}",
        f"fleet//../{control}",
        "runtime/get-nodes",
    ):
        assert status(gateway.published("gateway"), authority, f"/v1/{path}") == 403
    assert status(gateway.published("gateway"), authority, f"/v1/{control}/../../fleet/pull-messages") == 401
    assert status(gateway.published("superlink"), authority, f"/v1/{control}") == 200
    laptop.connect(gateway.published("superlink"), authority)
    assert laptop.call(*register).returncode == 0
    refused = with_slow_senders(gateway.published("gateway"), authority, 40)
    assert refused == 40 - 24, "else a host without a key fills the gateway's /tmp, which stops all sites"

    fill(docker / "client", {"SUPERLINK": gateway.published("gateway"), "PARTITION_ID": 0, "SITE_DATA": tmp_path})
    shutil.copytree(docker / "certs" / "site-0", docker / "client" / "certs")
    site = Stack(docker / "client" / "compose.yml", tmp_path / "site", docker / "client" / ".env")
    try:
        site["supernode"].start()
        until(lambda: '"POST /v1/fleet/pull-messages HTTP/1.1" 200' in gateway["gateway"].log, 90.0)
    finally:
        site.down()


def make_key(path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(path)], check=True)


def status(address, authority, path):
    """The status of an answer to a POST of a path as it stands."""
    host, port = address.split(":")
    context = ssl.create_default_context(cafile=str(authority))
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
    connection.request("POST", path, body=b"", headers={"content-type": "application/protobuf"})
    return connection.getresponse().status


def with_slow_senders(address, authority, number):
    """How many of these connections are refused, each of which announces a body of 16 MB and sends a part of it."""
    host, port = address.split(":")
    context = ssl.create_default_context(cafile=str(authority))
    head = "POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 16000000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        senders = [
            context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host)
            for _ in range(number)
        ]
        for sender in senders:
            stack.callback(sender.close)
            sender.sendall(head.encode() + bytes(1000))
            sender.settimeout(1.0)
        answers = []
        for sender in senders:
            with contextlib.suppress(TimeoutError):
                answers.append(sender.recv(12))
    assert set(answers) <= {b"HTTP/1.1 503"}
    return len(answers)


@pytest.fixture
def superlink(docker, certificates, tmp_path):
    """The TLS stack of which the SuperLink runs alone, with the keys of the two sites registered."""
    stack = Stack(docker / "compose.tls.yml", tmp_path / "stack", docker / ".env")
    try:
        for name in ("superlink", "register"):
            stack[name].start()
            stack[name].wait()
        yield stack
    finally:
        stack.down()


def attempt(stack, *changes, seconds=120):
    """Start the first site's SuperNode with its command changed; return how it ended, if it did, and its log."""
    node = stack["supernode-0"]
    command = node.command
    for old, new in changes:
        assert any(old in word for word in command), command
        command = [word.replace(old, new) for word in command if word.replace(old, new)]
    try:
        done = subprocess.run(
            command,
            env=node.environment,
            cwd=stack.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as running:
        return None, (running.stdout or b"").decode() + (running.stderr or b"").decode()
    return done.returncode, done.stdout + done.stderr


def test_the_tls_stack_refuses_who_does_not_belong(superlink, certificates, laptop, tmp_path):
    """An unregistered key, another authority, no TLS, another secret; a registered key is let in."""
    assert "site-0: registered" in superlink["register"].log
    superlink["register"].start()
    superlink["register"].wait()
    assert "site-1: registered before" in superlink["register"].log
    ended, log = attempt(superlink, seconds=20)
    assert ended is None
    assert "Starting Flower SuperNode" in log
    assert "Exit Code" not in log

    make_key(tmp_path / "other")
    ended, log = attempt(superlink, (str(certificates / "site-0" / "auth"), str(tmp_path / "other")))
    assert ended == 1
    assert "Failed to activate SuperNode" in log
    assert "No SuperNode found with the given public key" in superlink["superlink"].log

    ended, log = attempt(superlink, (f"--auth-supernode-private-key={certificates / 'site-0' / 'auth'}", ""))
    assert ended == 1
    assert "must be registered" in log

    (tmp_path / "elsewhere").mkdir()
    shutil.copy(certificates.parent / "certs.sh", tmp_path / "elsewhere")
    other = make_certificates(tmp_path / "elsewhere", "superlink") / "ca" / "ca.crt"
    mine = certificates / "site-0" / "ca.crt"
    ended, log = attempt(superlink, (f"--root-certificates={mine}", f"--root-certificates={other}"))
    assert ended == 1
    assert "CERTIFICATE_VERIFY_FAILED" in log

    address = superlink.published("superlink")
    laptop.connect(address, other)
    assert laptop.call("flwr", "ls").returncode == 1
    laptop.connect(address)  # insecure
    assert laptop.call("flwr", "ls").returncode == 1
    with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException)):
        urllib.request.urlopen(f"http://{address}/health", timeout=5)
    laptop.connect(address, certificates / "user" / "ca.crt")
    assert laptop.call("flwr", "ls").returncode == 0

    (tmp_path / "secret").write_text("no secret")
    worker = superlink["serverapp"]
    command = [
        word.replace(str(certificates / "server" / "superexec.secret"), str(tmp_path / "secret"))
        for word in worker.command
    ]
    subprocess.run(command, env=worker.environment, cwd=tmp_path, capture_output=True, timeout=30, check=False)
    assert "SuperExec authentication failed" in superlink["superlink"].log


LONG = {
    "local_steps": 700,
    "held_out_fraction": 0.0,
    "preview_every": 0,
    "eval_every": 0,
    "correction_steps": 1,
    "round_timeout": 200.0,
    "transport": "flat",
}


def until(what, seconds=150.0):
    """Wait until ``what()`` is true, and return it."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.3)
    return found


def rounds_of(path):
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["phase"] == "round"]


@pytest.mark.long
def test_a_supernode_that_is_killed_in_a_round_is_left_out_and_comes_back(started, certificates, laptop, tmp_path):
    """With its key it is the same node again: no error comes for what it had taken, unless one looks closely."""
    stack = started("compose.tls.yml")
    laptop.connect(stack.published("superlink"), certificates / "user" / "ca.crt")
    process = laptop.run(settings_of(tmp_path, num_rounds=4, **LONG))
    until(lambda: "phase=train round=2/4 client=1" in stack["clientapp-1"].log)
    began = time.monotonic()
    stack["supernode-1"].kill()
    stats = stack["serverapp"].mounted("/results") / "runs" / "deployed" / "stats.jsonl"
    with stack["supernode-1"].restarted():
        until(lambda: len(rounds_of(stats)) > 1)
        assert time.monotonic() - began < 120
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output + stack.logs()
    run = RunDirectory(laptop.folder / "runs" / "deployed")
    rows = run.rounds()
    assert [sorted(row["train/client_loss"]) for row in rows[:2]] == [["0", "1"], ["0"]]
    assert "gone or did not answer" in rows[1]["train/left_out"]["1"]
    assert sorted(rows[-1]["train/client_loss"]) == ["0", "1"]
    assert run.summary["status"] == "completed"
    assert "round 2: client 1 is left out: its node is gone or did not answer in time" in output


def add_third_site(docker, tmp_path, run_config):
    """Images of three sites, and a compose file with a copy of the second site's services."""
    shutil.rmtree(tmp_path / "sites")
    export_sites(open_dataset(load_config(run_config | {"num-clients": 3}).data, 0), tmp_path / "sites")
    file = docker / "compose.yml"
    spec = yaml.safe_load(file.read_text())
    for name in ("supernode", "clientapp"):
        text = json.dumps(spec["services"][f"{name}-1"]).replace("SITE_1", "SITE_2")
        spec["services"][f"{name}-2"] = json.loads(re.sub(r"(supernode-|partition-id=|site-)1", r"\g<1>2", text))
    spec["volumes"]["site-2-home"] = None
    file.write_text(yaml.safe_dump(spec))
    with (docker / ".env").open("a") as env:
        env.write(f"\nSITE_2_DATA={tmp_path / 'sites' / 'site-0002'}\n")


@pytest.mark.long
@pytest.mark.timeout(1000)
def test_a_site_that_is_killed_before_its_masked_update_is_left_out_of_the_sum(
    docker, started, laptop, tmp_path, run_config
):
    """Two of three sites are enough to remove the masks that they have in common with it."""
    add_third_site(docker, tmp_path, run_config)
    stack = started("compose.yml")
    laptop.connect(stack.published("superlink"))
    secure = {"secure_aggregation": True, "max_update_norm": "", "algorithm": "fedavg", "num_clients": 3}
    process = laptop.run(settings_of(tmp_path, num_rounds=3, **LONG | secure))
    until(lambda: "phase=train round=2/3 client=1" in stack["clientapp-1"].log, 400.0)
    stack["supernode-1"].kill()
    with stack["supernode-1"].restarted():
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output + stack.logs()
    run = RunDirectory(laptop.folder / "runs" / "deployed")
    first, second, third = run.rounds()
    assert "train/left_out" not in first
    assert "gone or did not answer" in second["train/left_out"]["1"]
    assert second["secure/recovered"] == [1]
    assert second["train/num_examples"] < first["train/num_examples"]
    assert third["train/loss"] < first["train/loss"]
    assert not any("train/client_loss" in row for row in (first, second, third))


@pytest.mark.long
def test_a_server_that_is_killed_in_a_round_is_resumed(started, laptop, tmp_path, run_app):
    """With the clients' states of SCAFFOLD, which lie at the sites, in folders of the first run."""
    stack = started("compose.yml")
    laptop.connect(stack.published("superlink"))
    settings = settings_of(tmp_path, algorithm="scaffold", num_rounds=3)
    process = laptop.run(settings)
    results = stack["serverapp"].mounted("/results") / "runs"
    until(lambda: len(rounds_of(results / "deployed" / "stats.jsonl")) == 2)
    kill_server(stack)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output + stack.logs()
    again = laptop.run(settings | {"run-name": "again"}, "--resume", "runs/deployed")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output + stack.logs()
    assert "resumed after round" in output
    assert RunDirectory(results / "deployed").summary["status"] == "completed"
    here, simulated = RunDirectory(laptop.folder / "runs" / "again"), in_simulation(run_app, tmp_path, **SCAFFOLD)
    assert here.losses() == simulated.losses()
    name = "checkpoints/round-0003/model.safetensors"
    assert (here.path / name).read_bytes() == (simulated.path / name).read_bytes()


SCAFFOLD = {"algorithm": "scaffold", "num_rounds": 3}
UDEC = {"algorithm": "feddiffuse", "feddiffuse_split": "udec", "num_rounds": 2, "eval_every": 0, "preview_every": 0}


@pytest.mark.long
def test_parts_stay_at_the_sites_until_the_end_where_their_models_are_collected(started, laptop, tmp_path, run_app):
    """The state of each site is in a file there; the run's result is one model per site, equal to the simulation's."""
    stack = started("compose.yml")
    laptop.connect(stack.published("superlink"))
    process = laptop.run(settings_of(tmp_path, **UDEC))
    output, _ = process.communicate(timeout=420)
    assert process.returncode == 0, output + stack.logs()
    here = RunDirectory(laptop.folder / "runs" / "deployed")
    simulated = in_simulation(run_app, tmp_path, **UDEC, transport="flat")
    assert here.losses() == simulated.losses()
    for name in ("model", "client-0000/model", "client-0001/model"):
        file = f"checkpoints/round-0002/{name}.safetensors"
        assert (here.path / file).read_bytes() == (simulated.path / file).read_bytes()
    assert sorted(path.name for path in (here.path / "pipeline").iterdir()) == ["client-0000", "client-0001"]
    assert not any("eval/loss" in row for row in here.rounds()[:-1])
    for key in ("comm/up_mb", "comm/down_mb", "comm/evaluation_mb"):
        assert here.summary[key] == simulated.summary[key] > 0


PEERS = {"algorithm": "pdfed", "pdfed_samples": 20, "num_rounds": 2, "eval_every": 0, "preview_every": 0}


@pytest.mark.long
@pytest.mark.timeout(1000)
def test_peers_at_two_sites_train_by_arrival_and_by_the_virtual_clock_as_the_simulation_does(
    started, laptop, tmp_path, run_app
):
    stack = started("compose.yml")
    laptop.connect(stack.published("superlink"))
    output, _ = laptop.run(settings_of(tmp_path, **PEERS)).communicate(timeout=420)
    here = laptop.folder / "runs" / "deployed"
    checked = laptop.call(*laptop.command("ledger", str(here)))
    assert checked.returncode == 0, output + checked.stdout + checked.stderr + stack.logs()
    ledger = [json.loads(line) for line in (here / "ledger.jsonl").read_text().splitlines()]
    assert sorted(entry["peer"] for entry in ledger if entry["kind"] == "submission") == [0, 0, 1, 1]
    assert {entry["peer"] for entry in ledger if entry["kind"] == "vote"} == {0, 1}
    assert not any(entry["kind"] == "left" for entry in ledger)
    process = laptop.run(settings_of(tmp_path, **PEERS, run_name="virtual", pdfed_clock="virtual"))
    output, _ = process.communicate(timeout=420)
    assert process.returncode == 0, output + stack.logs()
    here = RunDirectory(laptop.folder / "runs" / "virtual")
    simulated = in_simulation(run_app, tmp_path, **PEERS, transport="flat")
    assert here.losses() == simulated.losses()
    for name in ("ledger.jsonl", *(f"checkpoints/round-0002/client-000{k}/model.safetensors" for k in (0, 1))):
        assert (here.path / name).read_bytes() == (simulated.path / name).read_bytes()


def kill_server(stack):
    """End the process of the ServerApp, which the SuperExec has started."""
    for process in psutil.Process(stack["serverapp"].process.pid).children(recursive=True):
        if any("flwr-serverapp" in word for word in process.cmdline()):
            process.kill()


@pytest.fixture
def hosts(docker, tmp_path):
    """The per-host layout: a server here, and two sites in network namespaces, each with its own certificates."""
    names = ["fd-site-0", "fd-site-1"]
    make_certificates(docker, SERVER, *names)
    with contextlib.ExitStack() as ending:
        try:
            ending.enter_context(network(names))
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        shutil.copytree(docker / "certs" / "server", docker / "server" / "certs")
        fill(docker / "server", {"SERVER_DATA": tmp_path / "server"})
        server = Stack(docker / "server" / "compose.yml", tmp_path / "stack", docker / "server" / ".env")
        ending.callback(server.down)
        door = with_gateway(server)
        server.hosts |= dict.fromkeys((door, "superlink"), SERVER)
        sites = []
        for number, name in enumerate(names):
            folder = docker / name
            shutil.copytree(docker / "client", folder)
            shutil.copytree(docker / "certs" / name, folder / "certs")
            data = tmp_path / "sites" / f"site-{number:04d}"
            given = {"SUPERLINK": server.published(door), "PARTITION_ID": number, "SITE_DATA": data}
            fill(folder, given)
            site = Stack(folder / "compose.yml", tmp_path / name, folder / ".env")
            ending.callback(site.down)
            assert set(site.spec["services"]["clientapp"]["networks"]) == {"inside"}
            assert site.spec["networks"]["inside"] == {"internal": True}
            for service in site.services.values():
                service.prefix = ["ip", "netns", "exec", inside(name) if service.name == "clientapp" else name]
            site.hosts["supernode"] = "supernode"
            sites.append(site)
        for stack in (server, *sites):
            stack.up()
        yield server, names


def reaches(namespace, address):
    """Whether a program in a network namespace can connect to an address."""
    host, port = address.rsplit(":", 1)
    code = f"import socket; socket.create_connection(({host!r}, {port}), 5).close()"
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", code], check=False, capture_output=True
    )
    return done.returncode == 0


def with_gateway(server):
    """Where sites reach a server: its gateway, or where there is no nginx, the SuperLink without one."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        del server.services["gateway"]
        return "superlink"
    server.image.variables["PATH"] += f":{Path(nginx).parent}"
    if os.getuid() == 0:  # in its container it is another user, and so are then all its processes
        server["gateway"].spec["command"][-1] += " user root;"
    return "gateway"


def fill(folder, given):
    """Make ``.env`` of ``.env.example``, with these values."""
    text = (folder / ".env.example").read_text()
    for key, value in given.items():
        text, found = re.subn(rf"^{key}=.*$", f"{key}={value}", text, flags=re.MULTILINE)
        assert found == 1
    (folder / ".env").write_text(text)


@pytest.mark.long
def test_a_site_that_is_cut_off_in_a_round_is_left_out_and_comes_back(hosts, docker, laptop, tmp_path):
    """Meanwhile the container with the code of users reaches its SuperNode, and nothing else."""
    server, names = hosts
    place = server.published("gateway" if "gateway" in server.services else "superlink")
    assert reaches(names[0], place)
    assert not reaches(inside(names[0]), place)
    laptop.connect(server.published("superlink"), docker / "certs" / "user" / "ca.crt")
    process = laptop.run(settings_of(tmp_path, num_rounds=6, **LONG | {"local_steps": 300}))
    stats = server["serverapp"].mounted("/results") / "runs" / "deployed" / "stats.jsonl"
    until(lambda: len(rounds_of(stats)) == 1)
    time.sleep(4)  # in round 2
    cut(names[1])
    until(lambda: any(row.get("absent") == [1] for row in rounds_of(stats)))
    join(names[1])
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output + server.logs()
    rows = RunDirectory(laptop.folder / "runs" / "deployed").rounds()
    trained = [sorted(row["train/client_loss"]) for row in rows]
    assert trained[0] == trained[-1] == ["0", "1"]
    assert "gone or did not answer" in rows[1]["train/left_out"]["1"]
    assert next(row["clients"] for row in rows if row.get("absent") == [1]) == [0]
    assert "client 1 is gone: its node is not connected" in output
    assert "client 1 is connected, and takes part from now on" in output


@pytest.mark.long
def test_a_model_of_143_mb_goes_through_the_tls_stack_and_comes_to_the_laptop(started, certificates, laptop, tmp_path):
    """35.75 M parameters (the shape of google/ddpm-cifar10-32), from a server without any images."""
    shutil.rmtree(tmp_path / "server" / "test")
    stack = started("compose.tls.yml")
    laptop.connect(stack.published("superlink"), certificates / "user" / "ca.crt")
    one_step = LONG | {"local_steps": 1, "batch_size": 1, "num_rounds": 1, "preview_images": 1, "algorithm": "fedavg"}
    process = laptop.run(settings_of(tmp_path, **one_step) | MODELS[LARGE] | {"mixed-channels": "convert"})
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output + stack.logs()
    run = RunDirectory(laptop.folder / "runs" / "deployed")
    [row] = run.rounds()
    assert sorted(row["train/client_loss"]) == ["0", "1"]
    assert row["comm/up_mb"] == pytest.approx(2 * 143, abs=1)
    weights = run.path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    there = stack["serverapp"].mounted("/results") / "runs" / "deployed" / "pipeline"
    assert weights.stat().st_size > 143e6
    assert weights.read_bytes() == (there / "unet" / weights.name).read_bytes()
    assert "there is no test split on this host" in output
