import torch

from fedddpm_app import limits
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.evaluation.extractors import classifier as module
from fedddpm_app.evaluation.extractors import load_classifier, load_pixels_pca
from fedddpm_app.evaluation.extractors.fitted import fitted_extractors
from tests.evaluation.extractors.conftest import CPU


def test_files_are_found_by_the_digests_of_their_extractors(tmp_path, monkeypatch):
    """Also for images that are smaller or larger than the classifier's input."""
    monkeypatch.setattr(module, "_STEPS", (1, 1))
    digests = []
    for size in ((6, 40), (8, 8)):
        images = torch.randint(256, (9, 3, *size), dtype=torch.uint8)
        data = ImageTensors(images, torch.arange(9) % 3)
        digests += [load(data, "0a", tmp_path, CPU).digest for load in (load_classifier, load_pixels_pca)]
    assert len(set(digests)) == 4
    for name in ("classifier-v0-0a-1x8x8", "other", "pixels-pca-v1-0b-1x8x8"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    found = fitted_extractors(tmp_path)
    assert set(found) == set(digests)
    assert [found[digest].name for digest in digests] == [
        *("classifier-v2-0a-3x6x40.safetensors", "pixels-pca-v1-0a-3x6x40.safetensors"),
        *("classifier-v2-0a-3x8x8.safetensors", "pixels-pca-v1-0a-3x8x8.safetensors"),
    ]
    monkeypatch.setattr(limits, "EXTRACTOR_BYTES", 100)
    assert fitted_extractors(tmp_path) == {}
    assert fitted_extractors(tmp_path / "missing") == {}
