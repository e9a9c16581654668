"""What a container may do, for each service of each compose file: all that Docker can take away is taken away."""

import re

import pytest
import yaml

from tests.conftest import ROOT

DOCKER = ROOT / "docker"
FILES = ("compose.yml", "compose.tls.yml", "server/compose.yml", "client/compose.yml")
SERVICES = [
    pytest.param(file, name, id=f"{file}:{name}")
    for file in FILES
    for name in yaml.safe_load((DOCKER / file).read_text())["services"]
]
LISTENERS = {"superlink", "gateway"}  # which programs publish a port


def spec_of(file):
    return yaml.safe_load((DOCKER / file).read_text())


def runs_code_of_users(name):
    return name.startswith(("serverapp", "clientapp"))


@pytest.mark.parametrize(("file", "name"), SERVICES)
def test_a_service_has_no_rights_that_it_does_not_need(file, name):
    service = spec_of(file)["services"][name]
    assert service["user"] == "1000:1000"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["pids_limit"] > 0
    assert re.fullmatch(r"\$\{\w+_MEMORY:-\d+g\}|\d+m", service["mem_limit"])
    assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices", "userns_mode"} & set(service)


@pytest.mark.parametrize(("file", "name"), SERVICES)
def test_a_service_writes_to_its_volumes_and_to_memory_of_limited_size_alone(file, name):
    service = spec_of(file)["services"][name]
    places = {place.split(":")[0] for place in service["tmpfs"]}
    assert all(re.search(r"size=\d+g", place) for place in service["tmpfs"])
    volumes = [volume for volume in service.get("volumes", []) if isinstance(volume, str)]
    homes = [volume for volume in volumes if volume.endswith(":/home/app")]
    assert places == ({"/tmp"} if homes else {"/tmp", "/home/app"})
    assert bool(homes) == runs_code_of_users(name)
    for mount in service.get("volumes", []):
        if not isinstance(mount, str):
            assert mount["read_only"] is True
            assert "docker.sock" not in mount["source"]


@pytest.mark.parametrize(("file", "name"), SERVICES)
def test_code_of_users_has_no_key_and_no_way_out(file, name):
    spec = spec_of(file)
    service = spec["services"][name]
    if not runs_code_of_users(name):
        return
    assert all(spec["networks"][network]["internal"] is True for network in service["networks"])
    assert "ports" not in service
    mounted = [mount["source"].rsplit("/", 1)[-1] for mount in service["volumes"] if not isinstance(mount, str)]
    assert not {"certs", "auth"} & set(mounted)
    assert not any(source.endswith(".key") for source in mounted)


@pytest.mark.parametrize("file", FILES)
def test_code_of_users_at_a_site_reaches_its_supernode_alone(file):
    """Not the SuperLink, at whose API everyone may do everything, and not the other site."""
    services = spec_of(file)["services"]
    for name, service in services.items():
        if name.startswith("clientapp"):
            reached = {other for other in services if set(services[other]["networks"]) & set(service["networks"])}
            assert reached == {name, name.replace("clientapp", "supernode")}


@pytest.mark.parametrize("file", FILES)
def test_only_the_gateway_is_reached_from_other_machines(file):
    services = spec_of(file)["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) <= LISTENERS
    for port in published.get("superlink", []):
        assert port.startswith(("127.0.0.1:", "${CONTROL_ADDRESS:-127.0.0.1}:"))
    assert ("gateway" in published) == (file == "server/compose.yml")


def test_the_gateway_passes_the_api_of_supernodes_alone():
    text = re.sub(r"#.*", "", (DOCKER / "server" / "gateway.conf").read_text())
    assert re.findall(r"location ([^{]+) {", text) == ["/v1/fleet/", "= /health", "/"]
    assert re.search(r"location / {\s+return 403;\s+}", text)
    assert re.findall(r"proxy_pass (\S+);", text) == [
        "https://superlink:8443/v1/fleet/",
        "https://superlink:8443/health",
    ]
    assert "proxy_ssl_verify on;" in text
