"""Fitted extractors travel with a published grid, so that its cells are measured alike on all machines."""

import json
from types import SimpleNamespace

import pytest
import torch

from fedddpm_app.compare.extractors import publish_extractors, restore_extractors
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.evaluation.extractors import load_pixels_pca
from fedddpm_app.evaluation.extractors.fitted import fitted_extractors

CPU = torch.device("cpu")


@pytest.fixture
def machine(run_config, tmp_path):
    """Make a machine: a cache, with an extractor fitted to images of a seed, and a cell measured with a digest."""

    def make(name, seed=None, digest=None):
        config = load_config(run_config | {"cache-dir": str(tmp_path / name)})
        cache, directory = tmp_path / name / "extractors", tmp_path / f"{name}-cell"
        if seed is not None:
            images = torch.randint(256, (9, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).byte()
            digest = digest or load_pixels_pca(ImageTensors(images), "abc", cache, CPU).digest
        directory.mkdir()
        metrics = [
            {"name": "fd", "extractor": "pixels-pca", "extractor_digest": digest},
            {"name": "memorized-share", "extractor": "pixels", "extractor_digest": "pixels"},
        ]
        (directory / "summary.json").write_text(json.dumps({"status": "completed", "metrics": metrics}))
        cell = SimpleNamespace(setting=SimpleNamespace(config=config), directory=directory)
        return SimpleNamespace(cell=cell, digest=digest, cache=cache)

    return make


@pytest.fixture
def published(machine, tmp_path):
    """The published extractor of a machine, and its digest."""
    first = machine("first", seed=0)
    target = tmp_path / "results"
    assert publish_extractors([first.cell], target) == [target / "extractors" / first.digest]
    assert publish_extractors([first.cell], target) == []
    (path,) = target.rglob("*.safetensors")
    assert path.relative_to(target).parts == ("extractors", first.digest, "pixels-pca-v1-abc-1x8x8.safetensors")
    return target, first.digest


def test_a_published_extractor_is_restored_before_cells_are_run(machine, published):
    target, digest = published
    other = machine("other", digest=digest)
    restore_extractors([other.cell], target)
    restore_extractors([other.cell], None)
    assert set(fitted_extractors(other.cache)) == {digest}


def test_a_machine_with_its_own_extractor_needs_another_cache(machine, published):
    target, digest = published
    other = machine("other", seed=1)
    (other.cell.directory / "summary.json").write_text(
        (other.cell.directory / "summary.json").read_text().replace(other.digest, digest)
    )
    with pytest.raises(ConfigError, match=rf"is extractor {other.digest}, .* with {digest}, .* add -c 'cache-dir="):
        restore_extractors([other.cell], target)
    assert set(fitted_extractors(other.cache)) == {other.digest}


def test_a_damaged_extractor_in_the_cache_is_replaced(machine, published):
    target, digest = published
    other = machine("other", digest=digest)
    other.cache.mkdir(parents=True)
    (other.cache / "pixels-pca-v1-abc-1x8x8.safetensors").write_bytes(b"damaged")
    restore_extractors([other.cell], target)
    assert set(fitted_extractors(other.cache)) == {digest}


def test_a_missing_or_damaged_published_extractor_gives_a_warning(machine, published, caplog):
    target, digest = published
    other = machine("other", digest=digest)
    (path,) = target.rglob("*.safetensors")
    for damage in (lambda: path.write_bytes(b"damaged"), path.unlink):
        damage()
        caplog.clear()
        restore_extractors([other.cell], target)
        assert f"were measured with extractor {digest}, which is not in {other.cache} or {target}" in caplog.text
    assert not other.cache.exists()
