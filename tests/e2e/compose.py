"""What `docker compose up` would start, started without Docker: a compose file's own commands as processes.

Service names become loopback addresses, ports free ones, volumes and bind mounts folders, and the paths of containers
the paths of these folders. All else, the commands, their order, their health checks, is as it stands in the file. With
`confined`, and where the kernel allows it, a service also has the read-only root and the lack of capabilities of its
container.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from fedddpm_app.launch.simulation import free_port
from tests.conftest import ROOT

MARK = "FEDDDPM_TEST_STACK"
_WAIT_SECONDS = 90.0
CONFINE = """set -e
folders=$1; shift
for folder in $folders; do mount --bind "$folder" "$folder"; done
mount -o remount,bind,ro /
exec setpriv --bounding-set=-all --no-new-privs -- "$@"
"""
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")


class Image:
    """What the Dockerfile gives a container: variables, and commands of ours on the path."""

    def __init__(self, dockerfile: Path, folder: Path) -> None:
        text = dockerfile.read_text().replace("\\\n", " ")
        final = text[text.rindex("\nFROM ") :]
        words = [word for line in final.splitlines() if line.startswith("ENV ") for word in shlex.split(line)[1:]]
        self.variables = dict(word.split("=", 1) for word in words)
        commands = folder / "bin"
        commands.mkdir()
        for source, target in re.findall(r"COPY --chmod=755 (\S+) (/usr/local/bin/\S+)", final):
            (commands / Path(target).name).symlink_to(ROOT / source)
        self.variables["PATH"] = f"{commands}:{Path(sys.executable).parent}:/usr/bin:/bin"


class Service:
    """One service of a compose file, which can be started, killed, and started again."""

    def __init__(self, stack: "Stack", name: str, spec: Mapping[str, Any]) -> None:
        self.stack = stack
        self.name = name
        self.spec = spec
        self.log_path = stack.folder / f"{name}.log"
        self.prefix: list[str] = []  # such as `ip netns exec NAME`
        self.process: psutil.Popen | None = None
        self.own_mounts = dict(self._folders())
        home = stack.folder / "containers" / name
        for path in ("/home/app", "/state", "/results"):
            if path not in self.own_mounts:
                self.own_mounts[path] = home / path.removeprefix("/")
            self.own_mounts[path].mkdir(parents=True, exist_ok=True)
        self.temporary = home / "tmp"
        self.temporary.mkdir()

    def mounted(self, path: str) -> Path:
        """The folder that a container's path stands for."""
        return self.own_mounts[path]

    @property
    def command(self) -> list[str]:
        return [self._here(word) for word in self.spec["command"]]

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> None:
        self._configure()
        with self.log_path.open("a") as log:
            self.process = psutil.Popen(
                [*self.prefix, *self._confinement(), *self.command],
                env=self.environment,
                cwd=self._here(self.spec.get("working_dir", "/home/app")),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def environment(self) -> dict[str, str]:
        """As in a container: what the image and the file say, nothing of this machine but a mark to find it by."""
        own = {key: self._here(value) for key, value in self.stack.image.variables.items()}
        here = {MARK: str(self.stack.folder), "TMPDIR": str(self.temporary)}
        return own | dict(self.spec.get("environment", {})) | here

    def wait(self) -> None:
        """Wait until the health check succeeds, or, without one, until the service has ended well."""
        until = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < until:
            if "healthcheck" not in self.spec:
                with contextlib.suppress(psutil.TimeoutExpired):
                    assert self.process.wait(1) == 0, self.log
                    return
            elif self.process.poll() is not None:  # restart: unless-stopped
                self.start()
            elif self.is_healthy():
                return
            time.sleep(0.5)
        raise AssertionError(f"{self.name} is not healthy: {self.log[-3000:]}")

    def is_healthy(self) -> bool:
        kind, *check = [self._here(word) for word in self.spec["healthcheck"]["test"]]
        assert kind == "CMD"
        done = subprocess.run(
            [*self.prefix, *check], env=self.environment, capture_output=True, check=False, timeout=30
        )
        return done.returncode == 0

    def kill(self) -> None:
        """End it without a chance to say goodbye."""
        self.process.kill()
        self.process.wait(10)

    @contextlib.contextmanager
    def restarted(self) -> Iterator[None]:
        """Start it again whenever it has ended, as `restart: unless-stopped` does."""
        assert self.spec["restart"] == "unless-stopped"
        over = threading.Event()

        def watch() -> None:
            while not over.wait(1.0):
                if self.process.poll() is not None:
                    self.start()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _confinement(self) -> list[str]:
        """The words before a command by which it can write to its volumes and tmpfs alone, as in its container."""
        if not self.stack.confined:
            return []
        assert self.spec["read_only"]
        assert self.spec["cap_drop"] == ["ALL"]
        targets = [volume.split(":")[1] for volume in self.spec.get("volumes", []) if isinstance(volume, str)]
        targets += [place.split(":")[0] for place in self.spec["tmpfs"] if not place.startswith("/tmp:")]
        folders = [str(self.own_mounts[target]) for target in targets] + [str(self.temporary)]
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", CONFINE, "sh", " ".join(folders)]

    def _folders(self) -> Iterator[tuple[str, Path]]:
        for volume in self.spec.get("volumes", []):
            if isinstance(volume, str):
                source, target = volume.split(":")
                assert source in self.stack.spec["volumes"]
                yield target, self.stack.folder / "volumes" / source
            else:
                assert volume["type"] == "bind"
                folder = (self.stack.file.parent / volume["source"]).resolve()
                assert folder.exists(), f"create_host_path is false, and {folder} is missing"
                yield volume["target"], folder

    def _configure(self) -> None:
        """Put this machine's ports, addresses and paths into the configuration that is mounted at ``/etc``."""
        for path, file in self.own_mounts.items():
            if path.startswith("/etc/") and file.parent != self.temporary:
                text = re.sub(r"(?<=listen )\d+", lambda m: self._own_port(m[0]), file.read_text())
                text = text.replace(" /tmp/", f" {self.temporary}/")
                lines = [" ".join(map(self._here, line.split(" "))) for line in text.split("\n")]
                self.own_mounts[path] = self.temporary / file.name
                self.own_mounts[path].write_text("\n".join(lines))

    def _here(self, word: str) -> str:
        """Put this machine's ports, addresses and paths for the container's."""
        for name, service in self.stack.names.items():
            word = re.sub(rf"(?<![\w.-]){name}:(\d+)", lambda m, s=service: f"{self.stack.address(s, m[1])}", word)
        word = re.sub(r"(localhost|127\.0\.0\.1):(\d{4,5})(?=$|/)", lambda m: f"{m[1]}:{self._own_port(m[2])}", word)
        word = re.sub(r"^--port=(\d+)$", lambda m: f"--port={self._own_port(m[1])}", word)
        mounts = self.stack.mounts_for(self)
        paths = "|".join(sorted(mounts, key=len, reverse=True))
        return re.sub(rf"(?<![\w.-])({paths})(?=$|[/\";])", lambda m: str(mounts[m[1]]), word)

    def _own_port(self, port: str) -> str:
        return port if port in self.stack.mapped_ports else self.stack.port(self.name, port)


class Stack:
    """The services of one compose file.

    Parameters
    ----------
    file : Path
        The compose file.
    folder : Path
        For logs, named volumes and what a container has of its own.
    env_file : Path
        Its variables, as of ``.env``.
    confined : bool
        Whether services write to what their containers may write to alone; this needs the rights of root.
    """

    def __init__(self, file: Path, folder: Path, env_file: Path, *, confined: bool = False) -> None:
        self.file = file
        self.confined = confined
        self.folder = folder
        folder.mkdir(parents=True)
        lines = [line for line in env_file.read_text().splitlines() if line and not line.startswith("#")]
        variables = dict(line.split("=", 1) for line in lines)
        self.spec = yaml.safe_load(_VARIABLE.sub(lambda match: _value(match, variables), file.read_text()))
        self.image = Image(ROOT / "docker" / "Dockerfile", folder)
        self._ports: dict[tuple[str, str], str] = {}
        self.hosts: dict[str, str] = {}  # where a service is reached, where that is not the loopback address
        self.names = {name: name for name in self.spec["services"]}
        for name, spec in self.spec["services"].items():
            for network in spec.get("networks", {}).values():
                self.names |= dict.fromkeys(network.get("aliases", []), name)
        self.services = {name: Service(self, name, spec) for name, spec in self.spec["services"].items()}

    def __getitem__(self, name: str) -> Service:
        return self.services[name]

    @property
    def mapped_ports(self) -> set[str]:
        return set(self._ports.values())

    def mounts_for(self, service: Service) -> dict[str, Path]:
        """A service's mounts, and what a SuperNode's config names: those of the SuperExec that works for it."""
        works = [s for s in self.services.values() if service.name in s.spec.get("depends_on", {})]
        found: dict[str, Path] = {}
        if any("--node-config" in word for word in service.spec["command"]):
            for worker in works:
                found |= worker.own_mounts
        return found | service.own_mounts

    def port(self, service: str, port: str) -> str:
        """The port of this machine for a service's port."""
        if (service, port) not in self._ports:
            self._ports[service, port] = str(free_port())
        return self._ports[service, port]

    def address(self, service: str, port: str) -> str:
        """Where a service's port is on this machine."""
        return f"{self.hosts.get(service, '127.0.0.1')}:{self.port(service, port)}"

    def published(self, service: str) -> str:
        """Where the host reaches a service, by its `ports`."""
        port = self.spec["services"][service]["ports"][0].rsplit(":", 1)[1]
        return self.address(service, port)

    def up(self) -> None:
        """Start all services, each when those it depends on are ready.

        `docker compose up --wait` takes a service that has ended for a failure, unless one that depends on it waits
        for just that; and several services that build one image can fail.
        """
        specs = self.spec["services"].values()
        awaited = [(name, how["condition"]) for spec in specs for name, how in spec.get("depends_on", {}).items()]
        for name, service in self.services.items():
            assert "healthcheck" in service.spec or (name, "service_completed_successfully") in awaited
        assert sum("build" in spec for spec in specs) == 1
        waiting = dict(self.services)
        ready: set[str] = set()
        while waiting:
            name = next(n for n, s in waiting.items() if set(s.spec.get("depends_on", {})) <= ready)
            waiting[name].start()
            waiting.pop(name).wait()
            ready.add(name)

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{service.log[-2000:]}" for name, service in self.services.items())

    def down(self) -> None:
        """Stop everything that was started, also by what was started."""
        found = [process for process in psutil.process_iter() if _is_of(process, self.folder)]
        for service in self.services.values():
            if service.process is not None and service.process.is_running():  # nginx overwrites its environment
                found += [service.process, *service.process.children(recursive=True)]
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=10)


def _value(match: "re.Match[str]", variables: Mapping[str, str]) -> str:
    name, kind, rest = match.groups()
    if variables.get(name):
        return variables[name]
    assert kind == ":-", f"{name}: {rest}"  # and a variable that is empty counts as missing
    return str(rest)


def _is_of(process: psutil.Process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(MARK) == str(folder) and process.pid != os.getpid()
    return False
