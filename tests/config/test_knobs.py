"""Every key of the run config reaches what it names: changing it changes the run."""

import pytest

from fedddpm_app.config import known_keys
from tests.conftest import ROOT

PLUS = {"algorithm": "fedddpm-plus", "plus-threshold": 1e9}
PROBE = PLUS | {"plus-signal": "probe-loss"}
ONE = {"num-rounds": 1}
FINAL = ONE | {"eval-final-images": 30}
SGD = {"optimizer": "sgd", "gradient-clip": 0.0}

# (key, another value, what else must be set for the key to matter)
KNOBS = [
    ("algorithm", "fedavg", {}),
    ("algorithm-options", "strength=0.5", {"algorithm": "examples.l1_proximal:L1Proximal"}),
    ("aggregator", "fedmedian", {}),
    ("num-rounds", 1, {}),
    ("clients-per-round", 2, {}),
    ("seed", 1, {}),
    ("precision", "bf16", {}),
    ("image-size", 16, {}),
    ("image-channels", 3, {}),
    ("class-conditional", True, {}),
    ("num-classes", 12, {"class-conditional": True}),
    ("num-clients", 3, {}),
    ("horizontal-flip", True, {}),
    ("partition", "iid", {}),
    ("dirichlet-alpha", 5.0, {"partition": "dirichlet"}),
    ("classes-per-client", 5, {"partition": "pathological"}),
    ("shards-per-client", 3, {"partition": "shards"}),
    ("held-out-fraction", 0.3, {}),
    ("unet-channels", "8,8", {}),
    ("unet-layers-per-block", 2, {}),
    ("unet-attention-resolutions", "4", {}),
    ("unet-norm-groups", 8, {}),
    ("unet-dropout", 0.5, {}),
    ("diffusion-steps", 100, {}),
    ("beta-schedule", "linear", {}),
    ("beta-start", 0.01, {"beta-schedule": "linear"}),
    ("beta-end", 0.2, {"beta-schedule": "linear"}),
    ("prediction-type", "v_prediction", {}),
    ("local-steps", 4, {}),
    ("local-epochs", 2, {"local-steps": 0, "local-epochs": 1, "batch-size": 256}),
    ("batch-size", 16, {}),
    ("optimizer", "sgd", {}),
    ("momentum", 0.9, SGD),
    ("learning-rate", 0.01, {}),
    ("learning-rate-schedule", "cosine", {}),
    ("warmup-steps", 1, {}),
    ("weight-decay", 0.5, {}),
    ("gradient-clip", 0.001, {"optimizer": "sgd"}),
    ("ema-decay", 0.0, {}),
    ("server-ema-decay", 0.0, {}),
    ("pretrain-steps", 4, {}),
    ("pretrain-learning-rate", 0.05, {}),
    ("pretrain-learning-rate-schedule", "constant", {}),
    ("init-from-pretrained", True, {}),
    ("auxiliary-size", 20, {}),
    ("auxiliary-sampler", "ddpm", {}),
    ("auxiliary-sampler-steps", 5, {}),
    ("correction-steps", 3, {}),
    ("correction-learning-rate", 0.05, {}),
    ("correction-learning-rate-schedule", "constant", {}),
    ("correction-batch-size", 4, {}),
    ("correction-keep-optimizer", True, {}),
    ("plus-signal", "probe-loss", PLUS),
    ("plus-window", 2, PLUS),
    ("plus-patience", 2, PLUS),
    ("plus-threshold", -1e9, PLUS),
    ("plus-max-corrections", 0, PLUS | {"num-rounds": 4}),
    ("plus-probe-images", 5, PROBE),
    ("plus-auxiliary", "eager", PLUS),
    ("aggregator-learning-rate", 0.01, ONE | {"aggregator": "fedadam"}),
    ("aggregator-momentum", 0.1, {"aggregator": "fedavgm"}),
    ("aggregator-beta-2", 0.5, {"aggregator": "fedyogi"}),
    ("aggregator-tau", 0.1, ONE | {"aggregator": "fedadagrad"}),
    ("aggregator-trim", 0.34, ONE | {"aggregator": "fedtrimmedavg", "num-clients": 6}),
    ("aggregator-malicious", 1, ONE | {"aggregator": "bulyan", "num-clients": 7}),
    ("aggregator-selected", 3, ONE | {"aggregator": "multikrum"}),
    ("fedprox-mu", 10.0, ONE | {"algorithm": "fedprox"}),
    ("scaffold-option", "I", SGD | {"algorithm": "scaffold"}),
    ("scaffold-server-learning-rate", 0.5, {"algorithm": "scaffold"}),
    ("feddyn-alpha", 1.0, {"algorithm": "feddyn"}),
    ("moon-mu", 0.0, {"algorithm": "moon"}),
    ("moon-temperature", 0.1, {"algorithm": "moon"}),
    ("moon-representation", "conv_in", {"algorithm": "moon"}),
    ("eval-every", 2, {}),
    ("eval-draws", 2, {}),
    ("eval-extractor", "pixels-pca", FINAL),
    ("eval-reference", "train", FINAL),
    ("eval-images", 30, ONE | {"eval-images": 20}),
    ("eval-sampler", "ddim", ONE | {"eval-images": 20}),
    ("eval-sampler-steps", 3, ONE | {"eval-images": 20}),
    ("eval-final-images", 40, FINAL),
    ("eval-final-sampler", "ddpm", FINAL),
    ("eval-final-sampler-steps", 5, FINAL),
    ("memorization-neighbours", 5, FINAL),
    ("memorization-rate", 0.1, FINAL),
    ("preview-every", 2, {}),
    ("preview-images", 20, {}),
    ("preview-sampler", "ddpm", {}),
    ("preview-sampler-steps", 5, {}),
    ("checkpoint-every", 1, {}),
    ("wire-dtype", "bf16", {}),
]
ELSEWHERE = {
    "output-dir": "where, not what",
    "run-name": "where, not what",
    "state-dir": "where, not what: tests/federation/test_client_state",
    "device": "test_training",
    "memory-format": "changes rounding at most: test_acceleration",
    "compile": "changes rounding at most: test_acceleration",
    "client-threads": "changes rounding at most",
    "server-threads": "changes rounding at most",
    "dataset": "tests/data",
    "mixed-channels": "tests/data",
    "max-bad-images": "tests/data",
    "partition-column": "tests/data",
    "cache-dir": "where, not what: tests/data",
    "min-partition-size": "tests/data",
    "max-examples-per-client": "tests/federation/test_replies",
    "pretrain-timeout": "tests/federation/test_messaging",
    "auxiliary-batch-size": "changes rounding at most: tests/diffusion/test_sampling",
    "auxiliary-generation": "where, not what: tests/federation/test_generation",
    "eval-batch-size": "changes rounding at most: tests/diffusion/test_sampling",
    "inception-weights": "tests/evaluation/extractors",
    "transport": "how, not what: tests/federation/test_wire_rounds",
    "class-names": "tests/data/test_sites",
    "node-timeout": "tests/federation/test_roll_call",
    "min-available-nodes": "tests/federation/test_roll_call",
    "min-replies": "tests/federation/test_messaging",
    "round-timeout": "tests/federation/test_messaging",
}


@pytest.fixture(scope="module")
def outcomes():
    """What runs gave, by their overrides."""
    return {}


@pytest.fixture
def outcome(outcomes, run_app):
    def of(overrides):
        key = tuple(sorted(overrides.items()))
        if key not in outcomes:
            run = run_app(**{name.replace("-", "_"): value for name, value in overrides.items()})
            pictures = {p.relative_to(run.path): p.read_bytes() for p in run.path.rglob("samples/*.png")}
            files = {p.relative_to(run.path) for p in run.path.rglob("*.safetensors")}
            decisions = [{k: v for k, v in row.items() if k.startswith("plus/")} for row in run.stats]
            metrics = [run.summary.get("metrics"), *(row.get("eval/metrics") for row in run.rounds())]
            outcomes[key] = (run.losses(), decisions, pictures, files, metrics)
        return outcomes[key]

    return of


@pytest.mark.parametrize(("key", "value", "given"), KNOBS, ids=[key for key, _, _ in KNOBS])
def test_a_changed_key_changes_the_run(outcome, key, value, given):
    assert outcome(given) != outcome(given | {key: value})


def test_every_key_is_in_the_list():
    assert sorted([*(key for key, _, _ in KNOBS), *ELSEWHERE]) == sorted(known_keys())


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.toml")), ids=lambda p: p.stem)
def test_every_experiment_in_conf_is_a_valid_config(path):
    from flwr.common.config import parse_config_args

    from fedddpm_app.config import default_run_config, load_config

    load_config(default_run_config(ROOT) | dict(parse_config_args([str(path)])))
