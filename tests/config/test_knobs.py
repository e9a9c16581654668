"""Every key of the run config reaches what it names: changing it changes the run."""

import tomllib

import pytest
import torch

from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.config import ConfigError, default_run_config, known_keys, load_config
from fedddpm_app.diffusion.objective import create_noise_scheduler
from fedddpm_app.federation.start_notes import start_notes
from fedddpm_app.recording.sheets import read_tiles
from tests.conftest import ROOT

ONE = {"num-rounds": 1, "num-clients": 2}
FOUR = {"num-clients": 4}
FEDAVG = {"algorithm": "fedavg"}
LOCAL = FEDAVG | ONE  # where one round of the clients' own training shows it, and nothing else can
PLUS = {"algorithm": "fedddpm-plus", "plus-threshold": 1e9}
KD = {"algorithm": "fedddpm-kd"}
LATE = {"algorithm": "fedddpm-late"}
PHD = {"algorithm": "fedphd"}
PEERS = {"algorithm": "pdfed", "pdfed-samples": 10}
PROBE = PLUS | {"plus-signal": "probe-loss"}
CLASSES = {"class-conditional": True}
CHEAP = LOCAL | {"eval-images": 20}
FINAL = LOCAL | {"eval-final-images": 30}
SGD = {"optimizer": "sgd", "gradient-clip": 0.0}
SCAFFOLD = {"algorithm": "scaffold", "batch-size": 128}  # Option I goes through all images, batch by batch
OPEN_NOISE = {"dp-secret-noise": False}
PRIVATE = LOCAL | OPEN_NOISE | {"train-dp-epsilon": 3.0}
PRIVATE_OWN = ONE | OPEN_NOISE | {"pretrain-dp-epsilon": 3.0}
OF_CLIENTS = LOCAL | FOUR | OPEN_NOISE | {"client-dp-epsilon": 8.0, "max-update-norm": ""}

# (key, other values, what else must be set for the key to matter); numbers lie on both sides of the unchanged value
KNOBS = [
    ("algorithm", ["fedavg"], {}),
    ("algorithm-options", ["strength=0.5"], ONE | {"algorithm": "examples.l1_proximal:L1Proximal"}),
    ("aggregator", ["fedmedian"], LOCAL | FOUR),
    ("num-rounds", [1, 3], FEDAVG),
    ("clients-per-round", [2], LOCAL | FOUR),
    ("seed", [1], LOCAL),
    ("precision", ["bf16"], LOCAL),
    ("image-size", [4, 16], LOCAL),
    ("image-channels", [3], LOCAL),
    ("class-conditional", [True], ONE),
    ("class-dropout", [0.5, 0.9], ONE | CLASSES),
    ("num-classes", [11, 13], LOCAL | {"class-conditional": True, "num-classes": 12}),
    ("num-clients", [3, 5], LOCAL | FOUR),
    ("horizontal-flip", [True], LOCAL),
    ("partition", ["iid"], LOCAL),
    ("dirichlet-alpha", [0.3, 5.0], LOCAL | {"partition": "dirichlet"}),
    ("classes-per-client", [2, 5], LOCAL | {"partition": "pathological", "num-clients": 5}),
    ("shards-per-client", [1, 3], LOCAL | {"partition": "shards"}),
    ("held-out-fraction", [0.0, 0.3], LOCAL),
    ("unet-channels", ["8,8"], LOCAL),
    ("unet-layers-per-block", [2], LOCAL),
    ("unet-attention-resolutions", ["4"], LOCAL),
    ("unet-norm-groups", [2, 8], LOCAL),
    ("unet-dropout", [0.1], LOCAL),
    ("diffusion-steps", [40, 100], LOCAL),
    ("beta-schedule", ["linear", "scaled_linear", "sigmoid"], LOCAL),
    ("beta-start", [1e-5, 0.01], LOCAL | {"beta-schedule": "linear"}),
    ("beta-end", [0.01, 0.2], LOCAL | {"beta-schedule": "linear"}),
    ("prediction-type", ["v_prediction", "sample"], LOCAL),
    ("loss", ["huber"], LOCAL),
    ("loss-weighting", ["sigmoid-log-snr"], LOCAL | {"prediction-type": "v_prediction"}),
    ("ddim-eta", [1.0, 0.5], LOCAL),
    ("guidance-scale", [0.0, 3.0], LOCAL | CLASSES | {"class-dropout": 0.5}),
    ("local-steps", [2, 4], LOCAL),
    ("local-epochs", [1, 3], LOCAL | {"local-steps": 0, "local-epochs": 2, "batch-size": 256}),
    ("batch-size", [4, 16], LOCAL),
    ("optimizer", ["adam", "sgd"], LOCAL | {"weight-decay": 0.5}),
    ("momentum", [0.9], LOCAL | SGD),
    ("learning-rate", [0.001, 0.01], LOCAL),
    ("learning-rate-schedule", ["cosine"], LOCAL),
    ("warmup-steps", [1], LOCAL),
    ("weight-decay", [0.5], LOCAL),
    ("gradient-clip", [0.001, 0.1], LOCAL | {"optimizer": "sgd", "gradient-clip": 0.01}),
    ("ema-decay", [0.0, 0.999], ONE),
    ("server-ema-decay", [0.0, 0.9], FEDAVG),
    ("ema-warmup", [1.0, 4.0], FEDAVG | {"server-ema-decay": 0.9, "ema-warmup": 2.0}),
    ("pretrain-from", ["global"], ONE),
    ("pretrain-steps", [2, 4], ONE),
    ("pretrain-learning-rate", [0.001, 0.05], ONE),
    ("pretrain-learning-rate-schedule", ["constant"], ONE),
    ("init-from-pretrained", [True], ONE),
    ("auxiliary-size", [8, 20], ONE),
    ("auxiliary-sampler", ["ddpm", "dpm-solver++"], ONE),
    ("auxiliary-sampler-steps", [1, 5], ONE),
    ("correction-steps", [1, 3], ONE),
    ("correction-learning-rate", [0.001, 0.05], ONE),
    ("correction-learning-rate-schedule", ["constant"], ONE),
    ("correction-batch-size", [4, 10], ONE),
    ("correction-keep-optimizer", [True], {}),
    ("plus-signal", ["probe-loss"], PLUS),
    ("plus-window", [2], PLUS),
    ("plus-patience", [2], PLUS),
    ("plus-threshold", [-1e9, 2e9], PLUS),
    ("plus-max-corrections", [0, 2], PLUS | {"num-rounds": 4}),
    ("plus-probe-images", [5, 8], PROBE | {"plus-probe-images": 6}),
    ("plus-auxiliary", ["eager"], PLUS),
    ("kd-warmup-steps", [1], KD | ONE),
    ("late-cycles", [2], LATE),
    ("late-teacher", ["local", "mean"], LATE | ONE),
    ("num-edges", [1, 3], PHD | {"prune-ratio": 0.0}),
    ("cloud-every", [1, 3], PHD | {"prune-ratio": 0.0, "num-rounds": 3}),
    ("edge-homogeneity", [1e-9, 9.0], PHD | {"prune-ratio": 0.0, "cloud-every": 9, "num-rounds": 4}),
    ("cloud-homogeneity", [0.0, 100.0], PHD | ONE | {"prune-ratio": 0.0} | FOUR),
    ("prune-ratio", [0.0, 0.5], PHD | ONE),
    ("prune-round", [1], PHD),
    ("prune-penalty", [0.0, 0.1], PHD | {"prune-round": 1}),
    ("pdfed-node", ["merge"], PEERS),
    ("pdfed-own-vote", [0.0, 1.0], PEERS | {"num-rounds": 3, "pdfed-speed-spread": 1.0, "seed": 1}),
    ("pdfed-samples", [5, 20], PEERS),
    ("pdfed-validators", [1, 2], PEERS),
    ("pdfed-clock", ["arrival"], PEERS | {"pdfed-speed-spread": 100.0}),
    ("pdfed-speed-spread", [1.0, 50.0], PEERS | {"num-rounds": 3}),
    ("aggregator-learning-rate", [0.001, 0.1], LOCAL | {"aggregator": "fedadam", "aggregator-learning-rate": 0.01}),
    ("aggregator-momentum", [0.1, 0.99], FEDAVG | {"aggregator": "fedavgm"}),
    ("aggregator-beta-2", [0.5, 0.999], FEDAVG | {"aggregator": "fedyogi"}),
    ("aggregator-tau", [0.0001, 0.1], LOCAL | {"aggregator": "fedadagrad"}),
    (
        "aggregator-trim",
        [0.15, 0.45],
        LOCAL | {"aggregator": "fedtrimmedavg", "num-clients": 7, "aggregator-trim": 0.3},
    ),
    ("aggregator-malicious", [1], LOCAL | {"aggregator": "bulyan", "num-clients": 7}),
    ("aggregator-selected", [1, 3], LOCAL | {"aggregator": "multikrum"} | FOUR),
    ("fedprox-mu", [0.0, 10.0], ONE | {"algorithm": "fedprox"}),
    ("scaffold-option", ["I"], SCAFFOLD),
    ("scaffold-server-learning-rate", [0.5, 2.0], SCAFFOLD | ONE),
    ("feddyn-alpha", [0.001, 1.0], ONE | {"algorithm": "feddyn"}),
    ("moon-mu", [0.0, 5.0], {"algorithm": "moon"}),
    ("moon-temperature", [0.1, 2.0], {"algorithm": "moon"}),
    ("moon-representation", ["conv_in"], {"algorithm": "moon"}),
    ("feddiffuse-split", ["full", "usplit", "ulatdec"], {"algorithm": "feddiffuse"}),
    ("feddiffuse-collect-models", [False], {"algorithm": "feddiffuse"}),
    ("eval-every", [0, 2], FEDAVG | {"num-rounds": 3}),
    ("eval-draws", [2], LOCAL),
    ("eval-extractor", ["pixels-pca"], FINAL),
    ("eval-reference", ["train"], FINAL),
    ("eval-images", [16, 30], CHEAP),
    ("eval-sampler", ["ddim"], CHEAP),
    ("eval-sampler-steps", [1, 3], CHEAP),
    ("eval-final-images", [20, 40], FINAL),
    ("eval-final-sampler", ["ddpm"], FINAL),
    ("eval-final-sampler-steps", [1, 5], FINAL),
    ("memorization-neighbours", [5, 100], FINAL),
    ("memorization-rate", [0.1, 0.9], FINAL | {"memorization-rate": 0.5}),
    ("preview-every", [0, 2], FEDAVG | {"num-rounds": 3}),
    ("preview-images", [5, 20], LOCAL),
    ("preview-sampler", ["ddpm", "dpm-solver++"], LOCAL),
    ("preview-sampler-steps", [1, 5], LOCAL),
    ("checkpoint-every", [1], FEDAVG),
    ("wire-dtype", ["bf16", "int8-delta"], LOCAL),
    ("pretrain-dp-epsilon", [1.0, 10.0], PRIVATE_OWN),
    ("pretrain-dp-delta", [1e-6, 1e-4], PRIVATE_OWN),
    ("train-dp-epsilon", [1.0, 10.0], PRIVATE),
    ("train-dp-delta", [1e-6, 1e-4], PRIVATE),
    ("dp-clip", [0.1, 2.0], PRIVATE),
    ("dp-noise-multiplicity", [2], PRIVATE),
    ("dp-secret-noise", [True], PRIVATE),
    ("client-dp-epsilon", [1.0, 100.0], OF_CLIENTS),
    ("client-dp-delta", [1e-6, 1e-4], OF_CLIENTS),
    ("client-dp-clip", [0.01, 100.0], OF_CLIENTS),
    ("client-dp-quantile", [0.5], OF_CLIENTS),
    ("secure-clip", [0.0001, 50.0], LOCAL | FOUR | {"secure-aggregation": True, "max-update-norm": ""}),
]


def _marks(is_first):
    """CI tries the first value of each key, `make long` all of them."""
    return [pytest.mark.slow] if is_first else [pytest.mark.slow, pytest.mark.long]


TRIED = [
    pytest.param(key, value, given, id=f"{key}-{value}", marks=_marks(value == values[0]))
    for key, values, given in KNOBS
    for value in values
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
    "pdfed-embedder": "tests/peers/test_private",
    "pdfed-novelty": "tests/algorithms/test_pdfed: tiny runs copy nothing",
    "pdfed-dedup": "tests/algorithms/test_pdfed: tiny runs copy nothing",
    "pretrain-timeout": "tests/federation/test_messaging",
    "auxiliary-batch-size": "changes rounding at most: tests/diffusion/test_sampling",
    "auxiliary-sharing": "who generates, not what: tests/auxiliary/test_own_images",
    "memorization-check": "tests/auxiliary/test_own_images",
    "memorization-extractor": "tests/auxiliary/test_gate",
    "max-memorized-share": "tests/auxiliary/test_own_images",
    "min-images-to-share": "tests/auxiliary/test_own_images",
    "keep-auxiliary": "tests/auxiliary/test_own_images",
    "auxiliary-generation": "where, not what: tests/federation/test_generation",
    "eval-batch-size": "changes rounding at most: tests/diffusion/test_sampling",
    "inception-weights": "tests/evaluation/extractors",
    "transport": "how, not what: tests/federation/test_wire_rounds",
    "class-names": "tests/data/test_sites",
    "node-timeout": "tests/federation/test_roll_call",
    "min-available-nodes": "tests/federation/test_roll_call",
    "min-replies": "tests/federation/test_messaging",
    "max-update-norm": "tests/federation/test_admission",
    "round-timeout": "tests/federation/test_messaging",
    "membership-attack": "adds metrics alone: tests/audit",
    "secure-aggregation": "who sees what: tests/federation/test_secure_training",
    "secure-threshold": "tests/federation/test_secure_training",
    "max-round-retries": "tests/faults/test_quorum",
    "checkpoint-keep": "tests/faults/test_resume",
    "tracker": "where, not what: tests/tracking",
    "track-client-images": "where, not what: tests/tracking",
    "resume": "tests/faults/test_resume",
    "resume-previous": "tests/faults/test_resume",
}

PUBLISHED = sorted((ROOT / "conf" / "published").glob("*.toml"))


@pytest.fixture
def outcome(shared_run):
    """What a run with these overrides gives."""

    def of(overrides):
        run = shared_run(**overrides)
        sheets = run.path.rglob("samples/*.png")
        pictures = {p.relative_to(run.path): [tile.tobytes() for tile in read_tiles(p)] for p in sheets}
        files = {p.relative_to(run.path) for p in run.path.rglob("*.safetensors") if p.stem != "state"}
        decisions = [{k: v for k, v in row.items() if k.startswith("plus/")} for row in run.stats]
        metrics = [run.summary.get("metrics"), *(row.get("eval/metrics") for row in run.rounds())]
        return run.losses(), decisions, pictures, files, metrics

    return of


@pytest.mark.parametrize(("key", "value", "given"), TRIED)
def test_a_changed_key_changes_the_run(outcome, key, value, given):
    assert outcome(given) != outcome(given | {key: value}), f"{key} = {value} changes nothing: is the key used?"


@pytest.mark.parametrize(("key", "values", "given"), KNOBS, ids=[key for key, _, _ in KNOBS])
def test_a_number_is_tried_on_both_sides(run_config, key, values, given):
    """Only above a value that is the least possible one."""
    config = run_config | given
    base = config[key]
    if isinstance(base, bool | str):
        return
    assert max(values) > base, "try a larger value too"
    if min(values) > base:
        with pytest.raises(ConfigError):
            load_config(config | {key: base - 1 if isinstance(base, int) else base - 1e-6})


@pytest.mark.parametrize(("key", "values", "given"), KNOBS, ids=[key for key, _, _ in KNOBS])
def test_no_key_is_said_to_have_no_effect_where_it_has_one(run_config, key, values, given):
    for value in values:
        changed = run_config | given | {key: value}
        config = load_config(changed)
        notes = start_notes(get_algorithm(config), config, changed)
        assert not [note for note in notes if note.startswith(f"{key} = ") and "no effect" in note]


@pytest.mark.parametrize(
    "algorithm",
    [
        "fedavg",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("aux-only", "fedddpm-late", "mixture", "pdfed")),
    ],
)
def test_a_key_that_is_said_to_have_no_effect_has_none(outcome, run_config, algorithm):
    """All such keys at once, each with a value that changes another run."""
    given = {"algorithm": algorithm, "num-rounds": 1}
    config = run_config | given
    others = {}
    for key, values, _ in KNOBS:
        changed = config | {key: values[-1]}
        try:
            loaded = load_config(changed)
            kind = get_algorithm(loaded)
        except ConfigError:
            continue
        if any(note.startswith(f"{key} = ") and "no effect" in note for note in start_notes(kind, loaded, changed)):
            others[key] = values[-1]
    assert len(others) > 30
    assert outcome(given) == outcome(given | others)


def test_every_key_is_in_the_list():
    listed = [*(key for key, _, _ in KNOBS), *ELSEWHERE]
    missing, gone = set(known_keys()) - set(listed), set(listed) - set(known_keys())
    assert not missing, f"add to KNOBS, or to ELSEWHERE if the key must not change a run: {', '.join(missing)}"
    assert not gone, f"there is no such key any more: {', '.join(gone)}"
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("path", [*sorted((ROOT / "conf").glob("*.toml")), *PUBLISHED], ids=lambda p: p.stem)
def test_every_experiment_in_conf_is_a_valid_config(path):
    from flwr.common.config import parse_config_args

    run_config = default_run_config(ROOT) | dict(parse_config_args([str(path)]))
    config = load_config(run_config)
    assert start_notes(get_algorithm(config), config, run_config) == []


@pytest.mark.parametrize("path", [path for path in PUBLISHED if path.stem.startswith("tun2023")], ids=lambda p: p.stem)
def test_the_linear_schedule_follows_the_log_snr_of_tun_et_al(path):
    """log-SNR(t) = -log(expm1(1e-4 + 10 t^2)), t = k / T: off by at most 0.1 from t = 0.05 on, and 0.01 at the end."""
    config = load_config(default_run_config(ROOT) | tomllib.loads(path.read_text()))
    total = config.diffusion.diffusion_steps
    t = torch.arange(1, total + 1, dtype=torch.float64) / total
    expected = -torch.log(torch.expm1(1e-4 + 10 * t**2))
    off = (torch.logit(create_noise_scheduler(config.diffusion).alphas_cumprod.double()) - expected).abs()
    assert off[t > 0.05].max() < 0.1
    assert off[-1] < 0.01
    assert total % 300 == 0  # their sampling steps
