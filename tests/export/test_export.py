"""`fedddpm export`: the exported pipeline is that of the run, and the card says nothing that is private."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace

import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DDPMPipeline
from PIL import Image
from typer.testing import CliRunner

from fedddpm_app import ClassConditionalPipeline
from fedddpm_app.algorithms import REGISTRY
from fedddpm_app.cli import app
from fedddpm_app.config import ConfigError, default_run_config, load_config
from fedddpm_app.diffusion.pipelines import find_pipelines, load_pipeline, pipeline_batches
from fedddpm_app.export.card import lengths
from fedddpm_app.export.citations import SOURCES
from fedddpm_app.export.exported import read_run
from fedddpm_app.export.privacy import privacy_notes
from tests.conftest import ROOT
from tests.diffusion.test_guidance import GUIDED

NASTY = "</a>|<script>alert(1)</script>\n---\nlicense: evil\n# [x](http://evil.example) `www.evil.example`"


def export(*arguments):
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return result.exit_code, " ".join((result.stdout + result.stderr).split())


def front_matter(folder):
    _, above, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(above), body


@pytest.fixture
def exported(shared_run, tmp_path):
    """Exports a run of these settings; returns its directory and the folder."""

    def of(*options, **overrides):
        run = shared_run(**overrides).path
        code, output = export(run, tmp_path / "model", "--samples", "4", *options)
        assert code == 0, output
        return run, tmp_path / "model"

    return of


def test_an_unconditional_model_loads_with_diffusers_alone_and_draws_the_runs_images(exported):
    run, folder = exported(num_rounds=1, eval_final_images=20)
    draw = {"batch_size": 3, "num_inference_steps": 4, "output_type": "np"}
    first, second = (
        DDPMPipeline.from_pretrained(path)(generator=torch.Generator().manual_seed(5), **draw).images
        for path in (run / "pipeline", folder)
    )
    assert (first == second).all()
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors", ".md", ".png"}
    about, body = front_matter(folder)
    assert (about["library_name"], about["pipeline_tag"]) == ("diffusers", "unconditional-image-generation")
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    for metric in metrics:
        row = f"| {metric['name']} | {metric['value']:.4g} |"
        assert row in body
    (results,) = (each["results"] for each in about["model-index"])
    stated = {metric["type"]: metric["value"] for result in results for metric in result["metrics"]}
    named = {metric["name"]: metric["value"] for metric in metrics if not metric["name"].startswith("aux-")}
    assert stated == pytest.approx(named, abs=1e-6)
    assert all("real images: " in metric["name"] for result in results for metric in result["metrics"])


@pytest.mark.parametrize("scale", [None, 0.0, 1.0, 3.0])
def test_a_conditional_model_draws_the_runs_images_of_the_classes_asked_for(exported, scale):
    """By our call with DDIM as diffusers has it, and by the sampler of `fedddpm sample` on the run."""
    run, folder = exported(**GUIDED)
    labels, seeds = torch.tensor([3, 0, 3, 9]), [1, 2, 3, 4]
    pipeline = ClassConditionalPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipeline(labels, scale, num_inference_steps=5, generator=generators, output_type="pt").images
    own = load_pipeline(run / "pipeline")
    (expected,) = pipeline_batches(
        own, sampler="ddim", steps=5, seeds=seeds, labels=labels, batch_size=4, guidance=own.guidance(scale)
    )
    assert torch.equal((images * 255).round().to(torch.uint8), expected)


@pytest.mark.slow
def test_the_conditional_pipeline_loads_in_a_plain_process(exported):
    _, folder = exported(**GUIDED)
    code = (
        "import sys; from fedddpm_app import ClassConditionalPipeline as P; p = P.from_pretrained(sys.argv[1]); "
        "images = p(class_labels=[1, 2], num_inference_steps=3).images; "
        "print(p.num_classes, p.config.guidance_scale, len(images), images[0].size, 'flwr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "10 2.0 2 (8, 8) False"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"class_labels": [10]}, "10 is not a class of the model; use 0 to 9"),
        ({"class_labels": []}, "give at least one whole number"),
        ({"class_labels": [0.5]}, "give at least one whole number"),
        ({"class_labels": 1, "num_inference_steps": 51}, "use a number from 1 to 50"),
        ({"class_labels": 1, "guidance_scale": -1.0}, "use a number of at least 0"),
        ({"class_labels": 1, "output_type": "latent"}, 'use "pil", "np" or "pt"'),
    ],
)
def test_a_wrong_call_is_refused(shared_run, arguments, says):
    pipeline = load_pipeline(shared_run(**GUIDED).path / "pipeline")
    with pytest.raises(ValueError, match=re.escape(says)):
        pipeline(**arguments)


@pytest.mark.parametrize("crafted", [{"null_class": 3}, {"guidance_scale": "2"}, {"guidance_scale": float("inf")}])
def test_an_index_that_does_not_fit_its_model_is_refused(shared_run, tmp_path, crafted):
    shutil.copytree(shared_run(**GUIDED).path / "pipeline", tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index | crafted))
    with pytest.raises(ConfigError, match=next(iter(crafted))):
        load_pipeline(tmp_path / "model")


def test_a_pipeline_in_half_precision_draws_nearly_the_same(exported):
    _, folder = exported(**GUIDED)
    images = []
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = ClassConditionalPipeline.from_pretrained(folder).to(dtype)
        generator = torch.Generator().manual_seed(0)
        images.append(pipeline([1, 2], num_inference_steps=2, generator=generator, output_type="pt").images)
    assert (images[0] - images[1]).abs().mean() < 0.05


def test_guidance_is_refused_where_the_model_was_not_trained_for_it(exported, tmp_path):
    run, folder = exported(class_conditional=True, num_rounds=1)
    with pytest.raises(ValueError, match=re.escape("class-dropout = 0.1")):
        ClassConditionalPipeline.from_pretrained(folder)(class_labels=1, guidance_scale=2.0)
    options = ["--num-images", "10", "--steps", "2", "--guidance", "2", "--out", str(tmp_path / "sheet.png")]
    result = CliRunner().invoke(app, ["sample", str(run), *options])
    assert result.exit_code == 2
    assert "class-dropout = 0.1" in result.stderr
    assert "a `guidance_scale` other than 1 is refused" in (folder / "README.md").read_text()


def test_an_older_run_whose_pipeline_is_diffusers_own_is_exported_with_ours(shared_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(shared_run(class_conditional=True, num_rounds=1).path, run)
    index = json.loads((run / "pipeline" / "model_index.json").read_text())
    kept = {name: index[name] for name in ("_diffusers_version", "scheduler", "unet")}
    (run / "pipeline" / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **kept}))
    assert export(run, tmp_path / "model", "--samples", "0")[0] == 0
    assert ClassConditionalPipeline.from_pretrained(tmp_path / "model").num_classes == 10
    assert not (tmp_path / "model" / "samples.png").exists()


def test_a_pruned_model_is_exported_with_its_own_class(exported):
    _, folder = exported(algorithm="fedphd", num_rounds=1)
    assert load_pipeline(folder).unet.__class__.__name__ == "PrunedUNet2DModel"
    assert "It needs the Python package" in (folder / "README.md").read_text()


def test_of_a_run_without_a_global_model_one_clients_model_is_exported(exported, shared_run, tmp_path):
    settings = {"algorithm": "local-only", "num_rounds": 1, "eval_final_images": 12}
    code, output = export(shared_run(**settings).path, tmp_path / "none")
    assert (code, "one for each of 4 clients: name one, such as --client 0" in output) == (2, True)
    assert "has models of client-0000" in export(shared_run(**settings).path, tmp_path / "none", "--client", "9")[1]
    run, folder = exported("--client", "2", **settings)
    source = find_pipelines(run)["client-0002"] / "unet" / "diffusion_pytorch_model.safetensors"
    assert (folder / "unet" / source.name).read_bytes() == source.read_bytes()
    _, body = front_matter(folder)
    (first, *_) = json.loads((run / "summary.json").read_text())["metrics"]
    assert f"| {first['name']} | {first['clients'][2]:.4g} | – |" in body
    assert "This is the model of one client" in body


def test_the_folder_says_nothing_about_the_host_and_repeats_the_run(exported):
    run, folder = exported("--license", "apache-2.0", **GUIDED)
    host = str(run.parent)
    for path in folder.rglob("*"):
        if path.is_file():
            assert host.encode() not in path.read_bytes(), path
    about, body = front_matter(folder)
    assert about["license"] == "apache-2.0"
    recipe = tomllib.loads(body.partition("```toml\n")[2].partition("```")[0])
    config = json.loads((run / "config.json").read_text())["run_config"]
    places = {"output-dir", "run-name", "state-dir", "cache-dir", "tracker"}
    assert default_run_config() | recipe == config | {key: default_run_config()[key] for key in places}
    assert Image.open(folder / "samples.png").width > 8


def test_texts_of_a_strange_run_are_data(shared_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(shared_run(**GUIDED).path, run)
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    rows[0]["data/classes"] = [NASTY] * 10
    (run / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = json.loads((run / "summary.json").read_text())
    for metric in summary["metrics"]:
        metric |= {"name": f"fd-{NASTY}", "sampler": NASTY, "reference": NASTY, "value": "1", "n": None}
    (run / "summary.json").write_text(json.dumps(summary))
    about = json.loads((run / "config.json").read_text())
    about["run_config"] |= {
        "algorithm": "evil:Class",
        "algorithm-options": "a=````",
        "dataset": "/home/me",
    }
    about |= {"git_commit": NASTY, "python": NASTY, "packages": {NASTY: "1", "torch": NASTY}}
    (run / "config.json").write_text(json.dumps(about))
    for place in ("scheduler/scheduler_config.json", "unet/config.json"):
        content = json.loads((run / "pipeline" / place).read_text()) | {"note": NASTY, "_name_or_path": NASTY}
        (run / "pipeline" / place).write_text(json.dumps(content))
    code, output = export(run, tmp_path / "model", "--samples", "0")
    assert code == 0, output
    metadata, body = front_matter(tmp_path / "model")
    assert metadata.keys() == {"library_name", "tags"}  # there is no number, and no public data
    for markup in ("<script", "](http://evil", "\n# [", "www.evil", "/home/me"):
        assert markup not in body
    assert "evil" not in (tmp_path / "model" / "unet" / "config.json").read_text()
    assert "evil" not in (tmp_path / "model" / "scheduler" / "scheduler_config.json").read_text()


def test_what_cannot_be_exported_is_refused(shared_run, tmp_path):
    run = shared_run(**GUIDED).path
    (there := tmp_path / "there").mkdir()
    assert "is there already: give a new folder" in export(run, there)[1]
    assert "give the directory of a completed run" in export(tmp_path, tmp_path / "new")[1]
    assert "the run has one model for all clients" in export(run, tmp_path / "new", "--client", "1")[1]
    assert "is not an identifier" in export(run, tmp_path / "new", "--license", "my own: one")[1]
    assert "has no effect without --push" in export(run, tmp_path / "new", "--public")[1]
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped)
    summary = json.loads((stopped / "summary.json").read_text()) | {"status": "interrupted"}
    (stopped / "summary.json").write_text(json.dumps(summary))
    code, output = export(stopped, tmp_path / "new")
    assert (code, "its status is interrupted; only a completed run is exported" in output) == (2, True)
    (stopped / "summary.json").write_text((run / "summary.json").read_text())
    (stopped / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    assert export(stopped, tmp_path / "new")[0] == 2
    assert not (tmp_path / "new").exists()  # nothing half-made stays


@pytest.mark.parametrize("name", REGISTRY)
def test_every_algorithm_has_the_paper_of_the_readme(name):
    (row,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| `{name}` |")]
    _, paper = SOURCES[name]
    linked = re.findall(r"https://arxiv.org/abs/[\d.]+", row)
    assert not linked or (paper is not None and linked == [paper.url])


def test_a_clients_card_has_nothing_of_the_models_together(shared_run):
    run = read_run(shared_run(algorithm="local-only", num_rounds=1, eval_final_images=12).path)
    metrics = [replace(metric, by_client={}, value=0.125) for metric in run.metrics]
    metrics += [replace(metrics[0], name="membership-final")]
    together = replace(run, metrics=metrics)
    assert "The run did not look for copies" in " ".join(privacy_notes(together, "client-0001"))
    assert "0.125" not in " ".join(privacy_notes(together, "client-0001"))
    assert "12.50%" in " ".join(privacy_notes(together, ""))


def test_the_card_names_each_attack(shared_run):
    run = read_run(shared_run(num_rounds=1, eval_final_images=20).path)
    names = {"membership-final": 0.5, "membership-final-likelihood-ratio": 0.625}
    metrics = [replace(run.metrics[0], name=name, value=value) for name, value in names.items()]
    notes = " ".join(privacy_notes(replace(run, metrics=metrics), ""))
    assert "by a threshold on the loss has an AUC of 0.500" in notes
    assert "by the likelihood ratio has an AUC of 0.625" in notes


@pytest.mark.parametrize(
    ("share", "floor", "is_above"),
    [(0.02, 0.01, False), (0.04, 0.01, True), (0.04, 0.03, False), (0.0, 0.0, False), (1.0, 0.9, True)],
)
def test_only_a_share_above_the_floor_by_more_than_chance_is_said_to_be_above(shared_run, share, floor, is_above):
    """Of 200 images; Wilson's intervals of 4, 8 and 200 begin at 0.8 %, 2.0 % and 98.1 %."""
    run = read_run(shared_run(num_rounds=1, eval_final_images=20).path)
    copies = next(metric for metric in run.metrics if metric.name == "memorized-share")
    changed = replace(run, metrics=[replace(copies, value=share, floor=floor, n=200)])
    assert ("This is above the floor" in " ".join(privacy_notes(changed, ""))) == is_above


@pytest.mark.parametrize(
    ("name", "sentences"),
    [
        (
            "fedddpm",
            ["Rounds: 2, with 4 of 4 clients, 3 steps per client.", "3 steps for each.", "12 images, generated"],
        ),
        ("centralized", ["Rounds: 2, in which no client trains."]),
        ("mixture", ["Rounds: 2, in which no client trains.", "3 steps for each."]),
        ("pdfed", ["Rounds: 2, with 4 of 4 clients, 3 steps per client."]),
    ],
)
def test_the_card_says_how_long_each_part_of_the_training_is(name, sentences, run_config):
    notes = lengths(load_config(run_config | {"algorithm": name}))
    assert len(notes) == len(sentences)
    assert all(each in note for each, note in zip(sentences, notes, strict=True))
