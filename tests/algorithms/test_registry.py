import pytest

from fedddpm_app.algorithms import REGISTRY, get_algorithm
from fedddpm_app.config import ConfigError
from tests.conftest import ROOT


def test_an_unknown_algorithm_lists_the_known():
    with pytest.raises(ConfigError, match=r'algorithm = "fedavgg" is not known: use one of fedavg, fedddpm\.'):
        get_algorithm("fedavgg")


@pytest.mark.parametrize("name", REGISTRY)
def test_every_algorithm_runs_and_is_documented(name, run_app):
    run = run_app(algorithm=name)
    assert run.summary["status"] == "completed"
    assert len(run.rounds()) == 2
    assert f"| `{name}` |" in (ROOT / "README.md").read_text()
    assert (ROOT / "conf" / f"{name}.toml").exists()
