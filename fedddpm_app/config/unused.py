"""Keys that have no effect in a run because of the value of another key.

A value that is set there is not an error, because files and sweeps set keys for several algorithms at once.
``federation.start_notes`` reports it at the start of the run.
"""

import types
from collections.abc import Mapping, Sequence

from fedddpm_app.config.fields import Scalar
from fedddpm_app.config.loading import GROUPS, default_run_config, keys_of
from fedddpm_app.config.sharing import checks_memorization

_Conditions = Mapping[str, tuple[str, Sequence[Scalar]]]

_NEEDS: _Conditions = types.MappingProxyType(  # key -> another key, and its values that use the first key
    {
        "momentum": ("optimizer", ["sgd"]),
        "dirichlet-alpha": ("partition", ["dirichlet", "quantity-skew"]),
        "classes-per-client": ("partition", ["pathological"]),
        "shards-per-client": ("partition", ["shards"]),
        "partition-column": ("partition", ["natural"]),
        "class-names": ("partition", ["sites"]),
        "aggregator-learning-rate": ("aggregator", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"]),
        "aggregator-momentum": ("aggregator", ["fedavgm", "fedadam", "fedyogi"]),
        "aggregator-beta-2": ("aggregator", ["fedadam", "fedyogi"]),
        "aggregator-tau": ("aggregator", ["fedadam", "fedyogi", "fedadagrad"]),
        "aggregator-trim": ("aggregator", ["fedtrimmedavg"]),
        "aggregator-malicious": ("aggregator", ["krum", "multikrum", "bulyan"]),
        "aggregator-selected": ("aggregator", ["multikrum"]),
        "inception-weights": ("eval-extractor", ["auto", "inception-v3"]),
        "secure-clip": ("secure-aggregation", [True]),
        "secure-threshold": ("secure-aggregation", [True]),
    }
)
_NOT_WITH: _Conditions = types.MappingProxyType(  # key -> another key, and its values that do not use the first key
    {
        "beta-start": ("beta-schedule", ["squaredcos_cap_v2"]),
        "beta-end": ("beta-schedule", ["squaredcos_cap_v2"]),
        "loss-weighting": ("prediction-type", ["epsilon"]),
        "eval-sampler": ("eval-images", [0]),
        "track-client-images": ("tracker", ["none"]),
        "eval-sampler-steps": ("eval-images", [0]),
        "eval-final-sampler": ("eval-final-images", [0]),
        "eval-final-sampler-steps": ("eval-final-images", [0]),
        "pretrain-dp-delta": ("pretrain-dp-epsilon", [0]),
        "train-dp-delta": ("train-dp-epsilon", [0]),
        "client-dp-delta": ("client-dp-epsilon", [0]),
        "client-dp-clip": ("client-dp-epsilon", [0]),
        "client-dp-quantile": ("client-dp-epsilon", [0]),
    }
)
SAMPLER_KEYS = ("auxiliary-sampler", "eval-sampler", "eval-final-sampler", "preview-sampler")
_MEASURING = ("eval-extractor", "eval-reference", "eval-batch-size", "inception-weights")
_DECIDE_THE_CHECK = ("memorization-check", "auxiliary-sharing", "partition", "pretrain-dp-epsilon")
_OF_DP = ("dp-clip", "dp-noise-multiplicity")
_BUDGETS = ("pretrain-dp-epsilon", "train-dp-epsilon", "client-dp-epsilon")
_FILES_OF_ALGORITHMS = ("fedddpm", "fedddpm_plus", "sharing", "distillation", "fedphd", "pdfed", "baselines")


def keys_of_algorithms() -> list[str]:
    """Return the keys that only some algorithms use."""
    groups = [group for group in GROUPS.values() if group.__module__.rpartition(".")[2] in _FILES_OF_ALGORITHMS]
    return [
        "ema-decay",
        "pretrain-dp-epsilon",
        "pretrain-dp-delta",
        *(key for group in groups for key in keys_of(group)),
    ]


def keys_without_effect(run_config: Mapping[str, Scalar]) -> dict[str, str]:
    """Return the keys that have no effect with any algorithm, each with the reason."""
    reasons = {}
    for conditions, uses in ((_NEEDS, True), (_NOT_WITH, False)):
        for key, (other, values) in conditions.items():
            if (run_config[other] in values) is not uses:
                reasons[key] = f"{other} = {in_toml(run_config[other])} does not use it"
    checks = checks_memorization(*(run_config[key] for key in _DECIDE_THE_CHECK))
    if not run_config["eval-final-images"] and not checks:
        keys = ("memorization-neighbours", "memorization-rate")
        reasons |= dict.fromkeys(keys, "eval-final-images = 0, and clients do not check their models for copies")
    if not run_config["eval-images"] and not run_config["eval-final-images"]:
        reasons |= dict.fromkeys(_MEASURING, "eval-images = 0 and eval-final-images = 0, so nothing is measured")
    if "inception-v3" in (run_config["pdfed-embedder"], run_config["memorization-extractor"] if checks else ""):
        reasons.pop("inception-weights", None)
    if not run_config["pretrain-dp-epsilon"] and not run_config["train-dp-epsilon"]:
        reasons |= dict.fromkeys(_OF_DP, "pretrain-dp-epsilon = 0 and train-dp-epsilon = 0, so nothing is private")
    if not any(run_config[key] for key in _BUDGETS):
        reasons["dp-secret-noise"] = f"{', '.join(_BUDGETS)} = 0, so nothing is private"
    return reasons


def report_unused(run_config: Mapping[str, Scalar], reasons: Mapping[str, str]) -> list[str]:
    """Return one sentence for each key without effect that has another value than the default.

    Parameters
    ----------
    run_config : mapping
        All keys.
    reasons : mapping of str to str
        The keys without effect, each with the reason.
    """
    defaults = default_run_config()
    return [
        f"{key} = {in_toml(run_config[key])} is set, but has no effect: {reason}"
        for key, reason in reasons.items()
        if run_config[key] != defaults[key]
    ]


def in_toml(value: Scalar) -> str:
    """Return a value as in a TOML file."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
