"""Every key of the run config reaches what it names: changing it changes the run."""

import pytest

from fedddpm_app.config import known_keys
from fedddpm_app.recording.sheets import read_tiles
from tests.conftest import ROOT

ONE = {"num-rounds": 1}
FEDAVG = {"algorithm": "fedavg"}
LOCAL = FEDAVG | ONE  # where one round of the clients' own training shows it, and nothing else can
PLUS = {"algorithm": "fedddpm-plus", "plus-threshold": 1e9}
PROBE = PLUS | {"plus-signal": "probe-loss"}
CHEAP = LOCAL | {"eval-images": 20}
FINAL = LOCAL | {"eval-final-images": 30}
SGD = {"optimizer": "sgd", "gradient-clip": 0.0}
SCAFFOLD = SGD | {"algorithm": "scaffold", "batch-size": 128}  # Option I goes through all images, batch by batch

# (key, another value, what else must be set for the key to matter)
KNOBS = [
    ("algorithm", "fedavg", {}),
    ("algorithm-options", "strength=0.5", ONE | {"algorithm": "examples.l1_proximal:L1Proximal"}),
    ("aggregator", "fedmedian", LOCAL),
    ("num-rounds", 1, {}),
    ("clients-per-round", 2, LOCAL),
    ("seed", 1, {}),
    ("precision", "bf16", LOCAL),
    ("image-size", 16, ONE),
    ("image-channels", 3, ONE),
    ("class-conditional", True, ONE),
    ("num-classes", 12, ONE | {"class-conditional": True}),
    ("num-clients", 3, LOCAL),
    ("horizontal-flip", True, LOCAL),
    ("partition", "iid", LOCAL),
    ("dirichlet-alpha", 5.0, LOCAL | {"partition": "dirichlet"}),
    ("classes-per-client", 5, LOCAL | {"partition": "pathological"}),
    ("shards-per-client", 3, LOCAL | {"partition": "shards"}),
    ("held-out-fraction", 0.3, LOCAL),
    ("unet-channels", "8,8", LOCAL),
    ("unet-layers-per-block", 2, LOCAL),
    ("unet-attention-resolutions", "4", LOCAL),
    ("unet-norm-groups", 8, LOCAL),
    ("unet-dropout", 0.1, {}),
    ("diffusion-steps", 100, LOCAL),
    ("beta-schedule", "linear", LOCAL),
    ("beta-start", 0.01, LOCAL | {"beta-schedule": "linear"}),
    ("beta-end", 0.2, LOCAL | {"beta-schedule": "linear"}),
    ("prediction-type", "v_prediction", LOCAL),
    ("local-steps", 4, LOCAL),
    ("local-epochs", 2, LOCAL | {"local-steps": 0, "local-epochs": 1, "batch-size": 256}),
    ("batch-size", 16, LOCAL),
    ("optimizer", "sgd", LOCAL),
    ("momentum", 0.9, LOCAL | SGD),
    ("learning-rate", 0.01, LOCAL),
    ("learning-rate-schedule", "cosine", LOCAL),
    ("warmup-steps", 1, LOCAL),
    ("weight-decay", 0.5, LOCAL),
    ("gradient-clip", 0.001, LOCAL | {"optimizer": "sgd"}),
    ("ema-decay", 0.0, ONE),
    ("server-ema-decay", 0.0, FEDAVG),
    ("pretrain-steps", 4, ONE),
    ("pretrain-learning-rate", 0.05, ONE),
    ("pretrain-learning-rate-schedule", "constant", ONE),
    ("init-from-pretrained", True, ONE),
    ("auxiliary-size", 20, ONE),
    ("auxiliary-sampler", "ddpm", ONE),
    ("auxiliary-sampler-steps", 5, ONE),
    ("correction-steps", 3, ONE),
    ("correction-learning-rate", 0.05, ONE),
    ("correction-learning-rate-schedule", "constant", ONE),
    ("correction-batch-size", 4, ONE),
    ("correction-keep-optimizer", True, {}),
    ("plus-signal", "probe-loss", PLUS),
    ("plus-window", 2, PLUS),
    ("plus-patience", 2, PLUS),
    ("plus-threshold", -1e9, PLUS),
    ("plus-max-corrections", 0, PLUS | {"num-rounds": 4}),
    ("plus-probe-images", 5, PROBE),
    ("plus-auxiliary", "eager", PLUS),
    ("aggregator-learning-rate", 0.01, LOCAL | {"aggregator": "fedadam"}),
    ("aggregator-momentum", 0.1, FEDAVG | {"aggregator": "fedavgm"}),
    ("aggregator-beta-2", 0.5, FEDAVG | {"aggregator": "fedyogi"}),
    ("aggregator-tau", 0.1, LOCAL | {"aggregator": "fedadagrad"}),
    ("aggregator-trim", 0.34, LOCAL | {"aggregator": "fedtrimmedavg", "num-clients": 6}),
    ("aggregator-malicious", 1, LOCAL | {"aggregator": "bulyan", "num-clients": 7}),
    ("aggregator-selected", 3, LOCAL | {"aggregator": "multikrum"}),
    ("fedprox-mu", 10.0, ONE | {"algorithm": "fedprox"}),
    ("scaffold-option", "I", SCAFFOLD),
    ("scaffold-server-learning-rate", 0.5, SCAFFOLD),
    ("feddyn-alpha", 1.0, {"algorithm": "feddyn"}),
    ("moon-mu", 0.0, {"algorithm": "moon"}),
    ("moon-temperature", 0.1, {"algorithm": "moon"}),
    ("moon-representation", "conv_in", {"algorithm": "moon"}),
    ("eval-every", 2, FEDAVG),
    ("eval-draws", 4, ONE),
    ("eval-extractor", "pixels-pca", FINAL),
    ("eval-reference", "train", FINAL),
    ("eval-images", 30, CHEAP),
    ("eval-sampler", "ddim", CHEAP),
    ("eval-sampler-steps", 3, CHEAP),
    ("eval-final-images", 40, FINAL),
    ("eval-final-sampler", "ddpm", FINAL),
    ("eval-final-sampler-steps", 5, FINAL),
    ("memorization-neighbours", 5, FINAL),
    ("memorization-rate", 0.1, FINAL),
    ("preview-every", 2, FEDAVG),
    ("preview-images", 20, LOCAL),
    ("preview-sampler", "ddpm", LOCAL),
    ("preview-sampler-steps", 5, LOCAL),
    ("checkpoint-every", 1, FEDAVG),
    ("wire-dtype", "bf16", LOCAL),
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


@pytest.fixture
def outcome(shared_run):
    """What a run with these overrides gives."""

    def of(overrides):
        run = shared_run(**overrides)
        sheets = run.path.rglob("samples/*.png")
        pictures = {p.relative_to(run.path): [tile.tobytes() for tile in read_tiles(p)] for p in sheets}
        files = {p.relative_to(run.path) for p in run.path.rglob("*.safetensors")}
        decisions = [{k: v for k, v in row.items() if k.startswith("plus/")} for row in run.stats]
        metrics = [run.summary.get("metrics"), *(row.get("eval/metrics") for row in run.rounds())]
        return run.losses(), decisions, pictures, files, metrics

    return of


@pytest.mark.parametrize(("key", "value", "given"), KNOBS, ids=[key for key, _, _ in KNOBS])
def test_a_changed_key_changes_the_run(outcome, key, value, given):
    assert outcome(given) != outcome(given | {key: value}), f"{key} = {value} changes nothing: is the key used?"


def test_every_key_is_in_the_list():
    listed = [*(key for key, _, _ in KNOBS), *ELSEWHERE]
    missing, gone = set(known_keys()) - set(listed), set(listed) - set(known_keys())
    assert not missing, f"add to KNOBS, or to ELSEWHERE if the key must not change a run: {', '.join(missing)}"
    assert not gone, f"there is no such key any more: {', '.join(gone)}"
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.toml")), ids=lambda p: p.stem)
def test_every_experiment_in_conf_is_a_valid_config(path):
    from flwr.common.config import parse_config_args

    from fedddpm_app.config import default_run_config, load_config

    load_config(default_run_config(ROOT) | dict(parse_config_args([str(path)])))
