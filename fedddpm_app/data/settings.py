"""Settings that can be read off the data: ``"auto"``, and settings that do not fit.

The defaults of the run config are those of the digits. Other data need other values, so that a default that does not
fit is reported; a value that the user gave stays.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from pydantic import ValidationError

from fedddpm_app.config import MAX_CLASSES, Config, ConfigError, DataConfig, Scalar, UNetConfig
from fedddpm_app.config.auto import AUTO, AUTO_KEYS, auto_keys
from fedddpm_app.config.loading import keys_of
from fedddpm_app.data.partitioning import partition_rows
from fedddpm_app.data.probe import MAX_SIZE, ImageFacts, look_at
from fedddpm_app.data.sites import SITES
from fedddpm_app.data.sources import DIGITS

DEMO: Mapping[str, Scalar] = {  # the defaults, which fit the digits; a test compares them with pyproject.toml
    "image-size": 8,
    "image-channels": 1,
    "num-classes": 10,
    "partition": "disjoint-classes",
    "num-clients": 4,
    "min-partition-size": 10,
}
_OWN_PARTITIONS = (SITES, "natural")  # what fits them is not known from headers and labels


def read_auto(run_config: Mapping[str, Scalar], data_path: str = "") -> dict[str, Scalar]:
    """Return the numbers for the keys that are ``"auto"``; empty if there are none.

    The server and the clients call this before they load a config. The numbers depend only on the data, so they are
    equal on all hosts.

    Parameters
    ----------
    run_config : Mapping
        All keys of a run config.
    data_path : str
        The folder of the only client whose images this host has; empty if the run config gives the source.

    Raises
    ------
    ConfigError
        When the data cannot be read, or this host does not have all of them.
    """
    wanted = auto_keys(run_config)
    if not wanted:
        return {}
    values = {**run_config, **_stand_ins(wanted)}
    try:
        data = DataConfig(**_fields(DataConfig, values))  # type: ignore[arg-type]
        unet = UNetConfig(**_fields(UNetConfig, values))  # type: ignore[arg-type]
    except (ValidationError, KeyError):
        return _stand_ins(wanted)  # load_config reports the other keys
    facts = None if data_path else look_at(data)
    if facts is None:
        raise _of_sites(wanted) if data.partition == SITES else _unopened(wanted, data)
    fitting = _image_settings(facts, unet)
    return {key: fitting[key] for key in wanted}


def leave_auto(run_config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return values for the keys that are ``"auto"`` on a machine without the data; the run's hosts read the numbers.

    Raises
    ------
    ConfigError
        With ``partition = "sites"``, where no host can read them.
    """
    wanted = auto_keys(run_config)
    if wanted and run_config.get("partition") == SITES:
        raise _of_sites(wanted)
    return _stand_ins(wanted)


def given_keys(run_config: Mapping[str, Scalar], overrides: Collection[str]) -> set[str]:
    """Return the keys of ``DEMO`` that the user gave: as an override, or in pyproject.toml with another value."""
    return {key for key, value in DEMO.items() if key in overrides or run_config.get(key, value) != value}


def fitting_settings(config: Config, given: Collection[str]) -> dict[str, Scalar]:
    """Return the settings to change so that a config fits its data; keys in ``given`` are not changed.

    Without labels, or with too few images or classes for it, the partition becomes ``iid``.
    """
    facts = None if config.data.dataset == DIGITS or set(given) >= set(DEMO) else look_at(config.data)
    if facts is None:
        return {}
    data = config.data
    now = dict(zip(AUTO_KEYS, (data.image_channels, data.image_size, data.num_classes), strict=True))
    wanted = _image_settings(facts, config.unet)
    if not facts.num_classes and not data.class_conditional:
        del wanted["num-classes"]  # without labels it has no effect
    changes = {key: value for key, value in wanted.items() if value != now[key] and key not in given}
    return changes | _partition_settings(config, facts, given)


def misfit(config: Config, given: Collection[str]) -> str:
    """Return a sentence if the data differ from settings that the user did not give; it names the settings that fit.

    The sentence is empty if the settings fit. More classes than the data have do no harm, except to a
    class-conditional model.
    """
    changes, data = fitting_settings(config, given), config.data
    spare = set(changes) == {"num-classes"} and data.num_classes > int(changes["num-classes"])
    if not changes or (spare and not data.class_conditional):
        return ""
    kept = {key: DEMO[key] for key in changes if key in AUTO_KEYS}
    keep = f"; to keep the demo's values, give {as_words(kept)} yourself" if kept else ""
    return f'dataset = "{data.dataset}": {look_at(data)}: use {as_words(changes)}{keep}.'


def as_words(settings: Mapping[str, Scalar]) -> str:
    """Return settings as words of ``--run-config``."""
    texts = {key: f'"{value}"' if isinstance(value, str) else value for key, value in settings.items()}
    return " ".join(f"{key}={value}" for key, value in texts.items())


def _image_settings(facts: ImageFacts, unet: UNetConfig) -> dict[str, Scalar]:
    size = facts.image_size(len(unet.block_out_channels) - 1)
    return dict(zip(AUTO_KEYS, (facts.image_channels, size, min(max(1, facts.num_classes), MAX_CLASSES)), strict=True))


def _partition_settings(config: Config, facts: ImageFacts, given: Collection[str]) -> dict[str, Scalar]:
    """Return the partition, and the number of clients or the smallest part, that the training images allow."""
    data, count = config.data, facts.num_train
    if data.partition in _OWN_PARTITIONS:
        return {}
    clients, least = data.num_clients, data.min_partition_size
    if clients * least > count and "num-clients" not in given:
        clients = count // least if count >= 2 * least else min(clients, count)
    if clients * least > count >= clients and "min-partition-size" not in given:
        least = count // clients
    now = {"num-clients": (data.num_clients, clients), "min-partition-size": (data.min_partition_size, least)}
    changes: dict[str, Scalar] = {key: new for key, (old, new) in now.items() if new != old}
    data = replace(data, num_clients=clients, min_partition_size=least)
    if "partition" not in given and not _can_partition(facts, data, config.run.seed):
        changes = {"partition": "iid", **changes}
    return changes


def _can_partition(facts: ImageFacts, data: DataConfig, seed: int) -> bool:
    try:
        partition_rows(facts.labels, None, facts.num_train, data, seed)
    except ConfigError:
        return False
    return True


def _fields(group: type, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {name: values[key] for key, name in keys_of(group).items()}


def _stand_ins(wanted: Collection[str]) -> dict[str, Scalar]:
    """Return numbers with which the other keys can be checked."""
    return {key: value for key, value in zip(AUTO_KEYS, (3, MAX_SIZE, MAX_CLASSES), strict=True) if key in wanted}


def _of_sites(wanted: list[str]) -> ConfigError:
    return ConfigError(
        f'{_named(wanted)} with partition = "{SITES}": no host of a deployment has the images of all sites to read '
        f"these numbers from; give numbers, such as {_demo(wanted)}."
    )


def _unopened(wanted: list[str], data: DataConfig) -> ConfigError:
    return ConfigError(
        f'{_named(wanted)}: none of the images of dataset = "{data.dataset}" can be opened to read these numbers from; '
        "repair the images, convert them to a usual format (DICOM, HEIC, SVG and raw files may not be read), or give "
        f"numbers, such as {_demo(wanted)}."
    )


def _named(wanted: list[str]) -> str:
    return ", ".join(f'{key} = "{AUTO}"' for key in wanted)


def _demo(wanted: list[str]) -> str:
    return as_words({key: DEMO[key] for key in wanted})
