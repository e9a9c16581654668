"""Hosts of a network of their own, as network namespaces, where the kernel and our rights allow that."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

BRIDGE = "fedddpm-br"
NETWORK = "10.213.77"
SERVER = f"{NETWORK}.1"


def ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *words], check=check, capture_output=True)


@contextmanager
def network(names: list[str]) -> Iterator[None]:
    """Join this host (``SERVER``) and a namespace for each name by a bridge; raises ``OSError`` where it cannot be."""
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
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        _remove(names)
        raise OSError(str(getattr(error, "stderr", b"") or error)) from error
    try:
        yield
    finally:
        _remove(names)


def cut(name: str) -> None:
    """Take a host off the network."""
    ip("-n", name, "link", "set", "eth0", "down")


def join(name: str) -> None:
    """Bring a host back."""
    ip("-n", name, "link", "set", "eth0", "up")


def _remove(names: list[str]) -> None:
    for name in names:
        ip("netns", "del", name, check=False)
        ip("link", "del", f"{name}-v", check=False)
    ip("link", "del", BRIDGE, check=False)
