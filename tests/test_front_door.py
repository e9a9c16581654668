"""What ``fedddpm_app`` gives by itself."""

import subprocess
import sys

import pytest

import fedddpm_app
from tests.conftest import ROOT


@pytest.mark.parametrize("name", fedddpm_app.__all__)
def test_a_public_name_is_where_the_api_page_says(name):
    found = getattr(fedddpm_app, name)
    assert getattr(found, "__name__", name) in (name, "Any", "dict")  # two are aliases of types
    assert f"`{name}`" in (ROOT / "docs" / "api.md").read_text()
    assert name in dir(fedddpm_app)


def test_simulate_is_the_function():
    from fedddpm_app import simulate

    assert callable(simulate)


def test_the_names_are_those_that_can_be_imported():
    assert set(fedddpm_app.__all__) == set(fedddpm_app._MODULES)
    with pytest.raises(AttributeError, match="has no attribute 'FedDDPMM'"):
        fedddpm_app.FedDDPMM  # noqa: B018


def test_importing_the_package_takes_no_torch():
    code = "import sys, fedddpm_app; sys.exit('torch' in sys.modules or 'flwr' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_type_checkers_may_read_the_annotations():
    assert (ROOT / "fedddpm_app" / "py.typed").exists()
