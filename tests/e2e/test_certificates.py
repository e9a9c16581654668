"""What docker/certs.sh makes: who can pose as whom with it, and which secrets leave the host that they belong to."""

import contextlib
import shutil
import ssl
import subprocess

import pytest
from cryptography import x509

from tests.conftest import ROOT

NAMES = ("superlink.example.org", "192.0.2.7", "superlink", "localhost", "127.0.0.1")


def made(here, *words):
    """What certs.sh makes in a folder."""
    shutil.copy(ROOT / "docker" / "certs.sh", here)
    subprocess.run(["./certs.sh", *words], cwd=here, check=True, capture_output=True)
    return here / "certs"


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    return made(tmp_path_factory.mktemp("operator"), "server", "superlink.example.org,192.0.2.7")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site that calls itself as the server."""
    return made(tmp_path_factory.mktemp("site"), "site", "superlink.example.org") / "superlink.example.org"


def accepts(authority, chain, name):
    """Whether a client with this authority takes the holder of this certificate for the host ``name``."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain.with_suffix(".crt"), chain.with_suffix(".key"))
    client = ssl.create_default_context(cafile=str(authority))
    pipes = [ssl.MemoryBIO() for _ in range(2)]
    ends = [
        client.wrap_bio(pipes[0], pipes[1], server_hostname=name),
        server.wrap_bio(pipes[1], pipes[0], server_side=True),
    ]
    for end in ends * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            try:
                end.do_handshake()
            except ssl.SSLCertVerificationError:
                return False
    return ends[0].version() is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_site_cannot_pose_as_the_server(operator, site, name):
    assert accepts(operator / "user" / "ca.crt", operator / "server" / "superlink", name)
    assert not accepts(operator / "user" / "ca.crt", site / "supernode", name)


def test_a_site_is_reached_by_its_own_client_app_alone(operator, site):
    assert accepts(site / "inside.crt", site / "supernode", "supernode")
    assert not accepts(site / "inside.crt", operator / "server" / "superlink", "superlink")
    assert not list(site.glob("inside.key")), "who has it can pose as the SuperNode"


def test_the_operator_gets_no_secret_of_a_site(operator, site):
    """They exchange two files that are public: the site's key for Flower, and the authority's certificate."""
    assert {path.name for path in operator.rglob("*.key")} == {"ca.key", "superlink.key"}
    assert {path.name for path in site.iterdir()} == {
        *("auth", "auth.pub", "inside.crt", "superexec.secret", "supernode.crt", "supernode.key", "supernode.names")
    }
    public = (site / "auth.pub").read_text()
    assert public.startswith("ecdsa-sha2-nistp384 ")
    assert "PRIVATE KEY" in (site / "auth").read_text()


def test_a_certificate_serves_one_purpose(operator, site):
    for file in (operator / "ca" / "ca.crt", site / "inside.crt"):
        authority = x509.load_pem_x509_certificate(file.read_bytes())
        limits = authority.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (limits.critical, limits.value.ca, limits.value.path_length) == (True, True, 0)
    for file in (operator / "server" / "superlink.crt", site / "supernode.crt"):
        host = x509.load_pem_x509_certificate(file.read_bytes())
        limits = host.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (limits.critical, limits.value.ca) == (True, False)
        usage = host.extensions.get_extension_for_class(x509.KeyUsage).value
        assert usage.digital_signature
        assert not usage.key_cert_sign
        [purpose] = host.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert purpose == x509.oid.ExtendedKeyUsageOID.SERVER_AUTH
    names = x509.load_pem_x509_certificate((operator / "server" / "superlink.crt").read_bytes())
    names = names.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    assert found == set(NAMES)


def test_no_secret_is_readable_for_other_users(operator, site):
    for folder in (operator, site):
        assert not [path for path in folder.rglob("*") if path.stat().st_mode & 0o077]


@pytest.mark.parametrize("words", [("site", "server"), ("site", "../a"), ("site", ".."), ("superlink", "site-0"), ()])
def test_a_wrong_call_makes_nothing(tmp_path, words):
    shutil.copy(ROOT / "docker" / "certs.sh", tmp_path)
    done = subprocess.run(["./certs.sh", *words], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "cannot be called" in done.stderr or "by the server's operator" in done.stdout
    assert not (tmp_path / "certs").exists()
