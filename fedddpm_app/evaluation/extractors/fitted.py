"""Files of extractors that are fitted to a data set.

The last bits of fitted weights depend on the processor, so another machine fits another extractor to the same images.
Machines measure alike if they share the file.
"""

import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load

from fedddpm_app import limits
from fedddpm_app.disk.bounded import read_bytes
from fedddpm_app.evaluation.extractors.classifier import VERSION as CLASSIFIER
from fedddpm_app.evaluation.extractors.classifier import Classifier, classifier_digest
from fedddpm_app.evaluation.extractors.pixels_pca import VERSION as PIXELS_PCA
from fedddpm_app.evaluation.extractors.pixels_pca import PixelsPca, pixels_pca_digest

FITTED = (Classifier.name, PixelsPca.name)
FOLDER = "extractors"  # in the cache
_NAME = re.compile(
    rf"({Classifier.name}-v{CLASSIFIER}|{PixelsPca.name}-v{PIXELS_PCA})-[0-9a-f]+-\d+x(\d+)x(\d+)\.safetensors"
)


def fitted_extractors(folder: Path) -> dict[str, Path]:
    """Return the files of fitted extractors in a folder, by the digests of their features.

    Files of other versions, and files that cannot be read, are left out.
    """
    found = {digest_of(path): path for path in sorted(folder.glob("*.safetensors"))}
    found.pop("", None)
    return found


def digest_of(path: Path) -> str:
    """Return the digest of the extractor in a file; empty if the file has none of this version."""
    named = _NAME.fullmatch(path.name)
    if named is None:
        return ""
    try:
        weights = load(read_bytes(path, limits.EXTRACTOR_BYTES))
    except (OSError, ValueError, SafetensorError):
        return ""
    if named[1].startswith(PixelsPca.name):
        return pixels_pca_digest(weights)
    return classifier_digest(weights, (int(named[2]), int(named[3])))
