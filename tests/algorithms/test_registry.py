import re

import pytest

from fedddpm_app.algorithms import REGISTRY, get_algorithm
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.federation.strategy import FederatedStrategy
from tests.conftest import ROOT


def test_an_unknown_algorithm_lists_the_known(run_config):
    with pytest.raises(ConfigError, match=r'algorithm = "fedavgg" is not known: use one of fedddpm, fedddpm-plus, '):
        get_algorithm(load_config(run_config | {"algorithm": "fedavgg"}))


@pytest.mark.parametrize("name", REGISTRY)
def test_every_algorithm_runs_two_rounds(name, shared_run):
    run = shared_run(algorithm=name)
    assert run.summary["status"] == "completed"
    assert len(run.rounds()) == 2
    (initial,) = (row for row in run.stats if row["phase"] == "initial")
    assert 0 < run.rounds()[-1]["eval/loss"] < initial["eval/loss"]


def missing_parts(name, module):
    """What a new algorithm consists of, see the end of docs/subclassing.md: the parts that are not there."""
    row = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| `{name}` |")]
    links = [f"fedddpm_app/algorithms/{module}.py", f"docs/algorithms/{name}.md", f"tests/algorithms/test_{module}.py"]
    wanted = {
        links[0]: ("Symbols:", "Deviations:"),
        links[1]: (f"# {name}: ",),
        links[2]: ("def test_",),
        f"conf/{name}.toml": (f'algorithm = "{name}"',),
    }
    for path, texts in wanted.items():
        content = (ROOT / path).read_text() if (ROOT / path).exists() else ""
        yield from (f"{path}: {text}" for text in texts if text not in content)
    if len(row) != 1:
        yield f"README.md: one row of the table of algorithms that starts with | `{name}` |"
    yield from (
        f"README.md: a link to {link} in the row of {name}" for link in links if row and f"({link})" not in row[0]
    )


@pytest.mark.parametrize("name", REGISTRY)
def test_every_algorithm_has_its_config_row_page_and_tests(name):
    module = REGISTRY[name].__module__.rpartition(".")[2]
    assert module == name.replace("-", "_")
    missing = "\n".join(missing_parts(name, module))
    assert not missing, f"missing:\n{missing}"


@pytest.mark.parametrize("name", REGISTRY)
def test_a_server_step_of_its_own_has_its_reason(name):
    """``own_aggregation`` refuses other aggregators, which an overridden ``aggregate`` would ignore."""
    kind = REGISTRY[name]
    own = kind.aggregate is not FederatedStrategy.aggregate
    assert kind.own_aggregation or not own, f"{kind.__name__} overrides aggregate: say in own_aggregation why"


def test_every_module_of_the_room_is_in_the_registry():
    known = {kind.__module__.rpartition(".")[2] for kind in REGISTRY.values()}
    files = {path.stem for path in (ROOT / "fedddpm_app" / "algorithms").glob("*.py")} - {"__init__"}
    assert files == known, f"add to the registry: {', '.join(sorted(files - known))}"


def test_the_parts_of_a_new_algorithm_are_named():
    assert list(missing_parts("fedfoo", "fedfoo")) == [
        "fedddpm_app/algorithms/fedfoo.py: Symbols:",
        "fedddpm_app/algorithms/fedfoo.py: Deviations:",
        "docs/algorithms/fedfoo.md: # fedfoo: ",
        "tests/algorithms/test_fedfoo.py: def test_",
        'conf/fedfoo.toml: algorithm = "fedfoo"',
        "README.md: one row of the table of algorithms that starts with | `fedfoo` |",
    ]


@pytest.mark.parametrize(
    ("overrides", "fix"),
    [
        (
            {"auxiliary-sampler-steps": 51},
            "auxiliary-sampler-steps = 51 is more than diffusion-steps = 50: use",
        ),
        ({"auxiliary-sampler-steps": 20}, "use 10 or 25"),
        ({"warmup-steps": 2}, "warmup-steps = 2 is not below correction-steps = 2"),
        ({"pretrain-steps": 2, "warmup-steps": 2, "correction-steps": 9}, "is not below pretrain-steps = 2"),
        (
            {"correction-steps": 0, "init-from-pretrained": True, "pretrain-steps": 2, "warmup-steps": 2},
            "pretrain-steps",
        ),
    ],
)
def test_an_algorithm_checks_the_keys_that_it_uses(run_config, overrides, fix):
    config = load_config(run_config | overrides)
    with pytest.raises(ConfigError, match=re.escape(fix)):
        get_algorithm(config)


@pytest.mark.parametrize(
    "unused",
    [
        {"algorithm": "fedavg", "warmup-steps": 2},
        {"algorithm": "fedavg", "pretrain-steps": 1, "correction-steps": 1, "auxiliary-sampler-steps": 49},
        {"correction-steps": 0, "auxiliary-sampler-steps": 49},
    ],
    ids=str,
)
def test_a_key_that_an_algorithm_does_not_use_blocks_nothing(run_config, unused):
    get_algorithm(load_config(run_config | unused))
