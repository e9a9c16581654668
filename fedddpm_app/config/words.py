"""Names that people type for a key: the nearest known key, or the key that a common short name means."""

import difflib
import types
from collections.abc import Iterable, Mapping

SHORT_NAMES: Mapping[str, str] = types.MappingProxyType(
    {
        "alpha": "dirichlet-alpha",
        "batch": "batch-size",
        "bs": "batch-size",
        "cache": "cache-dir",
        "channels": "image-channels",
        "checkpoint": "checkpoint-every",
        "classes": "num-classes",
        "clients": "num-clients",
        "clip": "gradient-clip",
        "conditional": "class-conditional",
        "cuda": "device",
        "data": "dataset",
        "data-dir": "dataset",
        "data-path": "dataset",
        "dropout": "unet-dropout",
        "ema": "server-ema-decay",
        "epochs": "local-epochs",
        "extractor": "eval-extractor",
        "flip": "horizontal-flip",
        "fraction-fit": "clients-per-round",
        "fraction-train": "clients-per-round",
        "gpu": "device",
        "grad-clip": "gradient-clip",
        "img-size": "image-size",
        "lr": "learning-rate",
        "method": "algorithm",
        "mu": "fedprox-mu",
        "name": "run-name",
        "num-epochs": "local-epochs",
        "num-server-rounds": "num-rounds",
        "opt": "optimizer",
        "out": "output-dir",
        "output": "output-dir",
        "path": "dataset",
        "resolution": "image-size",
        "rounds": "num-rounds",
        "sampler": "eval-final-sampler",
        "sampling-steps": "eval-final-sampler-steps",
        "schedule": "learning-rate-schedule",
        "scheduler": "learning-rate-schedule",
        "size": "image-size",
        "steps": "local-steps",
        "strategy": "algorithm",
        "threads": "client-threads",
        "timeout": "round-timeout",
        "timesteps": "diffusion-steps",
        "warmup": "warmup-steps",
        "wd": "weight-decay",
        "workers": "client-threads",
    }
)
_OF_FLOWER = ("num-supernodes", "client-resources-", "init-args-", "options.")


def plain(name: str) -> str:
    """Return a name in the form of the keys: lower case, hyphens, no dashes in front, no table before a dot."""
    return name.lower().replace("_", "-").rpartition(".")[2].strip("-:; ")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the key that a name probably means; None if no key is near."""
    keys, word = list(known), plain(name)
    if word in keys:
        return word
    if SHORT_NAMES.get(word) in keys:
        return SHORT_NAMES[word]
    return next(iter(difflib.get_close_matches(word, keys, n=1)), None)


def advice(name: str, known: Iterable[str]) -> str:
    """Return what to do about an unknown key, as the end of a sentence."""
    if name.startswith(_OF_FLOWER):
        return "it belongs to --federation-config."
    close = nearest(name, known)
    return f"did you mean {close}?" if close else "`fedddpm config` lists all keys."
