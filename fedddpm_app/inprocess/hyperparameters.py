"""Map the Python names of hyper-parameters to the keys of the run config."""

import difflib
from collections.abc import Mapping

import numpy as np

from fedddpm_app.algorithms import find_algorithm
from fedddpm_app.algorithms.pdfed import PDFed
from fedddpm_app.config import (
    Config,
    ConfigError,
    Scalar,
    default_run_config,
    known_keys,
    load_config,
)
from fedddpm_app.config.loading import GROUPS, keys_of
from fedddpm_app.config.unused import in_toml, keys_without_effect
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.progress import logger

_SYMBOLS = {  # names from the papers and from Flower; the first key that fits the algorithm or the rule is used
    "proximal-mu": ("fedprox-mu",),
    "eta-g": ("scaffold-server-learning-rate",),
    "server-lr": ("scaffold-server-learning-rate", "aggregator-learning-rate"),
    "server-learning-rate": ("aggregator-learning-rate",),
    "eta": ("aggregator-learning-rate",),
    "server-momentum": ("aggregator-momentum",),
    "beta-1": ("aggregator-momentum",),
    "beta": ("aggregator-trim",),
    "num-malicious": ("aggregator-malicious",),
    "num-malicious-nodes": ("aggregator-malicious",),
    "num-nodes-to-select": ("aggregator-selected",),
    "tau": ("moon-temperature", "aggregator-tau"),
    "delta": ("plus-threshold",),
    "correction-lr": ("correction-learning-rate",),
}
_OF_DATA = ("image-size", "image-channels", "num-classes", "class-conditional", "class-dropout", "num-clients")
_OF_ADMISSION = ("max-examples-per-client", "held-out-fraction")
_OF_RUNS = {  # keys that `flwr run` uses and simulate does not
    **{
        key: "simulate evaluates and records no models"
        for group in ("evaluation", "preview", "recording", "tracking")
        for key in keys_of(GROUPS[group])
    },
    **{
        key: "simulate trains on the given data sets"
        for key in keys_of(GROUPS["data"])
        if key not in (*_OF_DATA, *_OF_ADMISSION)
    },
    **dict.fromkeys(keys_of(GROUPS["unet"]), "simulate trains the given model"),
    **dict.fromkeys(("output-dir", "run-name", "resume", "resume-previous"), "simulate writes no run directory"),
    "server-ema-decay": "simulate returns the last weights, not their average",
}
_OPTIONS: dict[object, Scalar] = {1: "I", 2: "II"}  # other spellings of SCAFFOLD's options


def configure(
    algorithm: str | type[FederatedStrategy],
    plain: Mapping[str, Scalar],
    given: Mapping[str, Scalar],
    hyper: Mapping[str, Scalar],
) -> tuple[type[FederatedStrategy], Config]:
    """Return a strategy and its checked config.

    Parameters
    ----------
    algorithm : str or type
        A name, ``"my_module:MyStrategy"``, or a class.
    plain : mapping
        Values that replace the defaults.
    given : mapping
        Keys that have a separate argument, so that ``hyper`` must not contain them.
    hyper : mapping
        Hyper-parameters by any of their names. For an algorithm that is not in the registry, unknown names go into
        ``algorithm-options``.

    Raises
    ------
    ConfigError
        For an unknown algorithm, an unknown name, or a value that cannot be used.
    """
    kind, name = _resolve(algorithm)
    prefix = kind.key_prefix
    overrides: dict[str, Scalar] = {"algorithm": name}
    options: dict[str, Scalar] = {}
    for given_name, given_value in hyper.items():
        value: Scalar = given_value.item() if isinstance(given_value, np.generic) else given_value
        key = _known_key(given_name, prefix)
        if key in given:
            raise ConfigError(
                f"{given_name} = {value!r}: simulate has an argument for this key, or sets it; leave it out."
            )
        if key in overrides:
            raise ConfigError(f"{given_name} = {value!r}: {key} is given twice; give it once.")
        if key is not None:
            overrides[key] = _OPTIONS.get(value, value) if key == "scaffold-option" else value
        elif ":" in name and not _is_misspelt(given_name):
            options[given_name] = value
        else:
            raise ConfigError(
                f'{given_name} = {value!r}: algorithm = "{name}" has no such key{_advice(given_name, prefix)}'
            )
    if options:
        texts = [f"{key}={_as_text(key, value)}" for key, value in options.items()]
        overrides["algorithm-options"] = " ".join([str(overrides.get("algorithm-options", "")), *texts]).strip()
    run_config = default_run_config() | dict(plain) | dict(given) | overrides
    config = load_config(run_config)
    _check_without_held_out(kind, config)
    kind.check_config(config)
    if config.checks_memorization and "memorization-check" not in kind.keys_without_effect(config):
        raise ConfigError(
            "the clients of simulate have no held-out images, by which they could check what they share: use "
            'memorization_check = "never".'
        )
    reasons = keys_without_effect(run_config) | kind.keys_without_effect(config) | _OF_RUNS
    for key in overrides.keys() & reasons.keys():
        logger.warning("%s = %s has no effect: %s", key, in_toml(overrides[key]), reasons[key])
    return kind, config


def _check_without_held_out(kind: type[FederatedStrategy], config: Config) -> None:
    """Refuse what needs held-out examples, which the clients of simulate do not have."""
    if issubclass(kind, PDFed) and "check_scores" not in _overridden(kind, PDFed):
        raise ConfigError(
            f'algorithm = "{config.run.algorithm}": its peers score each other by images that they hold out, which the '
            "clients of simulate do not have; use `fedddpm run --engine inprocess`."
        )
    if fraction := config.data.held_out_fraction:
        raise ConfigError(
            f"held_out_fraction = {fraction}: the clients of simulate hold no examples out; leave it out, and evaluate "
            "the weights that simulate returns."
        )


def _overridden(kind: type, base: type) -> set[str]:
    """Return the names that a class, or one between it and its base, defines."""
    return {name for each in kind.__mro__[: kind.__mro__.index(base)] for name in vars(each)}


def _resolve(algorithm: str | type[FederatedStrategy]) -> tuple[type[FederatedStrategy], str]:
    """Return the strategy class and the value of the ``algorithm`` key; capitals and underscores are accepted."""
    if isinstance(algorithm, str):
        name = algorithm if ":" in algorithm else algorithm.lower().replace("_", "-")
        return find_algorithm(name), name
    if not (isinstance(algorithm, type) and issubclass(algorithm, FederatedStrategy)):
        raise ConfigError(f"algorithm = {algorithm!r}: give a name or a class derived from FederatedStrategy.")
    return algorithm, f"{algorithm.__module__}:{algorithm.__qualname__}"


def _known_key(name: str, prefix: str) -> str | None:
    """Return the run-config key of a hyper-parameter's name; None if the name is unknown."""
    kebab, known = name.replace("_", "-"), known_keys()
    fitting = ("aggregator-", "correction-", *([prefix] if prefix else []))
    symbols = [symbol for symbol in _SYMBOLS.get(kebab, ()) if symbol.startswith(fitting)]
    return next((key for key in (kebab, prefix + kebab, *symbols, f"aggregator-{kebab}") if key in known), None)


def _is_misspelt(name: str) -> bool:
    return bool(difflib.get_close_matches(name.replace("_", "-"), known_keys(), n=1, cutoff=0.9))


def _advice(name: str, prefix: str) -> str:
    known = known_keys()
    own = [key.removeprefix(prefix) for key in known if prefix and key.startswith(prefix)]
    close = difflib.get_close_matches(name.replace("_", "-"), ["auxiliary-data", *own, *known], n=3, cutoff=0.5)
    return f"; did you mean {', '.join(key.replace('-', '_') for key in close)}?" if close else "."


def _as_text(name: str, value: Scalar) -> str:
    """Return a value of ``algorithm-options``, whose pairs have white space between them."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if value is None or not text or text.split() != [text]:
        raise ConfigError(f"{name} = {value!r}: give a number, True or False, or a text without white space.")
    return text
