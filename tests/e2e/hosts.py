"""Hosts of a network of their own, as network namespaces, where the kernel and our rights allow that."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BRIDGE = "fedddpm-br"
NETWORK = "10.213.77"
INSIDE = "10.213.78"
SERVER = f"{NETWORK}.1"


def ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *words], check=check, capture_output=True)


@contextmanager
def network(names: list[str]) -> Iterator[None]:
    """Join this host (``SERVER``) and a namespace for each name by a bridge; raises ``OSError`` where it cannot be.

    Each of them has a neighbour, ``inside(name)``, which reaches it as `supernode`, and nothing else, as a container on
    an internal network.
    """
    try:
        _remove(names)
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{SERVER}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip("link", "add", f"{name}-v", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}-v", "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{NETWORK}.{10 + number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")
            _add_inside(name, 4 * number)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        _remove(names)
        raise OSError(str(getattr(error, "stderr", b"") or error)) from error
    try:
        yield
    finally:
        _remove(names)


def inside(name: str) -> str:
    """Return the namespace beside that of a host."""
    return f"{name}-app"


def cut(name: str) -> None:
    """Take a host off the network."""
    ip("-n", name, "link", "set", "eth0", "down")


def join(name: str) -> None:
    """Bring a host back."""
    ip("-n", name, "link", "set", "eth0", "up")


def _add_inside(name: str, start: int) -> None:
    first, second = (f"{INSIDE}.{start + k}" for k in (1, 2))
    ip("netns", "add", inside(name))
    ip("-n", name, "link", "add", "inside", "type", "veth", "peer", "name", "eth0", "netns", inside(name))
    for namespace, device, address in ((name, "inside", first), (inside(name), "eth0", second)):
        ip("-n", namespace, "addr", "add", f"{address}/30", "dev", device)
        ip("-n", namespace, "link", "set", device, "up")
    ip("-n", inside(name), "link", "set", "lo", "up")
    _etc(name).mkdir(parents=True)
    (_etc(name) / "hosts").write_text(f"127.0.0.1 localhost\n{first} supernode\n")


def _etc(name: str) -> Path:
    """Return the folder whose files `ip netns exec` shows in /etc."""
    return Path("/etc/netns") / inside(name)


def _remove(names: list[str]) -> None:
    for name in names:
        shutil.rmtree(_etc(name), ignore_errors=True)
        for namespace in (name, inside(name)):
            ip("netns", "del", namespace, check=False)
        ip("link", "del", f"{name}-v", check=False)
    ip("link", "del", BRIDGE, check=False)
