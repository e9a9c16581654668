"""Classifier-free guidance: class dropout in training, the scale in sampling."""

import inspect
import re

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.diffusion.distillation import DistillationSet
from fedddpm_app.diffusion.guidance import ClassDropout, Guidance, class_dropout_of, guidance_of
from fedddpm_app.diffusion.images import ImageBatch, ImageTensors, to_unit_range
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler
from fedddpm_app.diffusion.pruning import prune
from fedddpm_app.diffusion.sampling import SAMPLERS, image_seeds, sample_images
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.weights import snapshot
from tests.diffusion.test_sampling import gaussian_scheduler

NULL = 2
MEANS = torch.tensor([-0.1, 0.2, 0.0])  # of the pixels of two classes, and of no class
VARIANCE = 0.02
GUIDED = {
    "num_rounds": 1,
    "class_conditional": True,
    "class_dropout": 0.3,
    "guidance_scale": 2.0,
    "eval_final_images": 20,
}


class Classes(nn.Module):
    """The best predictor for pixels ~ N(mean of the class, VARIANCE); it counts its calls."""

    def __init__(self, scheduler):
        super().__init__()
        self.kind, self.alphas_cumprod = scheduler.config.prediction_type, scheduler.alphas_cumprod
        self.unused = nn.Parameter(torch.zeros(1))
        self.asked = []

    def forward(self, x_t, t, class_labels, return_dict=False):
        self.asked.append(class_labels)
        mean = MEANS[class_labels].view(-1, 1, 1, 1)
        abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        a, s = abar.sqrt(), (1 - abar).sqrt()
        x = mean + a * VARIANCE / (abar * VARIANCE + 1 - abar) * (x_t - a * mean)
        noise = (x_t - a * x) / s
        return ({"epsilon": noise, "sample": x, "v_prediction": a * noise - s * x}[self.kind],)


def draw(model, scheduler, guidance, label=1, count=600, sampler="ddim"):
    seeds, labels = image_seeds(0, "guided", count), torch.full((count,), label)
    options = {"sampler": sampler, "steps": 50, "shape": (1, 1, 1), "batch_size": count}
    return sample_images(model, scheduler, seeds=seeds, labels=labels, guidance=guidance, **options)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_guidance_moves_a_gaussian_class_by_the_scale(config, sampler, prediction_type, scale):
    """The best prediction is linear in the class's mean m, so that guidance with s is exact for N(s m, VARIANCE)."""
    scheduler = gaussian_scheduler(config, prediction_type=prediction_type)
    plain, guided = (
        to_unit_range(draw(Classes(scheduler), scheduler, guidance, sampler=sampler)).flatten()
        for guidance in (None, Guidance(scale, NULL))
    )
    assert float(guided.mean()) == pytest.approx(scale * float(MEANS[1]), abs=0.03)
    assert float(guided.std()) == pytest.approx(float(plain.std()), rel=0.02)


def test_scale_1_is_the_conditional_and_scale_0_the_unconditional_model_with_one_call_each(config):
    scheduler = gaussian_scheduler(config)
    found = {}
    for name, guidance, label in (
        ("conditional", None, 1),
        ("one", Guidance(1.0, NULL), 1),
        ("unconditional", None, NULL),
        ("zero", Guidance(0.0, NULL), 1),
    ):
        model = Classes(scheduler)
        found[name] = draw(model, scheduler, guidance, label, count=5)
        assert len(model.asked) == 50
    assert torch.equal(found["one"], found["conditional"])
    assert torch.equal(found["zero"], found["unconditional"])
    assert not torch.equal(found["one"], found["zero"])


@pytest.mark.parametrize(("scale", "corrected"), [(0.0, False), (1.0, False), (2.0, True)])
def test_guided_ddim_takes_the_noise_of_the_clipped_image(config, monkeypatch, scale, corrected):
    """And the models alone are sampled as without guidance, bit for bit."""
    step, given = DDIMScheduler.step, []

    def watched(self, *arguments, use_clipped_model_output=False, **options):
        given.append(use_clipped_model_output)
        return step(self, *arguments, use_clipped_model_output=use_clipped_model_output, **options)

    watched.__signature__ = inspect.signature(step)
    monkeypatch.setattr(DDIMScheduler, "step", watched)
    scheduler = gaussian_scheduler(config)
    draw(Classes(scheduler), scheduler, Guidance(scale, NULL), count=2)
    assert given == [corrected] * 50


def test_labels_are_dropped_with_their_probability_and_independently():
    batch = ImageBatch(torch.zeros(20_000, 1, 1, 1), torch.arange(20_000) % NULL)
    dropped = ClassDropout(0.3, NULL)(batch, torch.Generator().manual_seed(0)).labels
    is_null = dropped == NULL
    assert torch.equal(dropped[~is_null], batch.labels[~is_null])
    assert float(is_null.float().mean()) == pytest.approx(0.3, abs=0.01)
    both = (is_null[:-1] & is_null[1:]).float().mean()
    assert float(both) == pytest.approx(0.09, abs=0.01)
    unlabelled = ImageBatch(batch.images, None)
    assert ClassDropout(0.3, NULL)(unlabelled, torch.Generator()) is unlabelled


def labels_in_training(config, class_dropout, training):
    scheduler = create_noise_scheduler(config.diffusion)
    model = Classes(scheduler).train(training)
    batch = ImageBatch(torch.zeros(200, 1, 2, 2), torch.ones(200, dtype=torch.int64))
    generator = torch.Generator().manual_seed(0)
    loss = DenoisingObjective(scheduler, class_dropout=class_dropout)(model, batch, generator)
    return model.asked[0], float(loss), torch.rand(1, generator=generator)


def test_classes_are_dropped_in_training_alone_and_without_dropout_nothing_is_drawn(config):
    plain, loss, after = labels_in_training(config, None, training=True)
    assert (plain == 1).all()
    measured = labels_in_training(config, ClassDropout(0.5, NULL), training=False)
    assert ((measured[0] == 1).all(), *measured[1:]) == (True, loss, after)
    trained, _, _ = labels_in_training(config, ClassDropout(0.5, NULL), training=True)
    assert 60 < int((trained == NULL).sum()) < 140


def test_a_teacher_of_distillation_gets_the_labels_of_its_pupil(config):
    objective = DenoisingObjective(create_noise_scheduler(config.diffusion), class_dropout=ClassDropout(0.5, NULL))
    images = ImageTensors(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), torch.ones(40, dtype=torch.int64))
    teacher = Classes(objective.scheduler)
    data = DistillationSet(images, [0] * 40, lambda _: snapshot(teacher), teacher, objective)
    (batch,) = data.stream(iter([torch.arange(40)]), 1, torch.Generator().manual_seed(0))
    assert set(batch.labels.tolist()) == {1, NULL}
    assert torch.equal(batch.target, teacher(batch.x_t, batch.t, batch.labels)[0])


def test_the_null_class_is_one_more_label_of_the_model(run_config):
    conditional = run_config | {"class-conditional": True}
    for dropout, rows, null in ((0.0, 10, None), (0.1, 11, 10)):
        config = load_config(conditional | {"class-dropout": dropout})
        model = create_unet(config.unet, config.data, 0)
        assert (len(model.class_embedding.weight), config.data.null_class) == (rows, null)
        assert (class_dropout_of(config.data) is None) == (dropout == 0)
        assert guidance_of(config) is None
        assert "class_embedding.weight" in prune(model, snapshot(model), 0.5).positions
    guided = load_config(conditional | {"class-dropout": 0.1, "guidance-scale": 2.0})
    assert guidance_of(guided) == Guidance(2.0, 10)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"class-dropout": 0.1}, "class-dropout = 0.1 with class-conditional = false"),
        ({"guidance-scale": 2.0}, "guidance-scale = 2.0 with class-dropout = 0.0"),
        ({"guidance-scale": 0.0, "class-conditional": True}, "use class-conditional = true and class-dropout = 0.1"),
        ({"class-dropout": 1.0, "class-conditional": True}, "class-dropout = 1.0 cannot be used"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(run_config, given, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_config(run_config | given)


def test_a_run_states_its_guidance_and_commands_take_another(shared_run, tmp_path):
    run = shared_run(**GUIDED)
    samplers = {metric["name"]: metric["sampler"] for metric in run.summary["metrics"]}
    assert samplers.pop("aux-memorized-share") == "ddim"  # D_aux follows the clients' own distributions
    assert set(samplers.values()) == {"ddim, guidance = 2"}
    sheets = []
    for options in ([], ["--guidance", "2"], ["--guidance", "1"]):
        path = tmp_path / f"{len(sheets)}.png"
        more = ["--num-images", "10", "--sampler", "ddim", "--steps", "2", "--out", str(path), *options]
        result = CliRunner().invoke(app, ["sample", str(run.path), *more])
        assert result.exit_code == 0, result.output
        sheets.append(path.read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "fedddpm-kd"},
        {"algorithm": "feddiffuse"},
        {"algorithm": "fedphd"},
        {"algorithm": "mixture"},
        {"algorithm": "pdfed", "pdfed_samples": 10},
        {"algorithm": "moon"},
        {"algorithm": "fedavg", "train_dp_epsilon": 8.0},
        {"algorithm": "fedddpm", "auxiliary_sharing": "images", "memorization_check": "never"},
        {"algorithm": "fedavg", "precision": "bf16", "unet_dropout": 0.1},
    ],
    ids=str,
)
def test_every_kind_of_training_knows_the_null_class(run_app, settings):
    classes = {"class_conditional": True, "class_dropout": 0.5, "guidance_scale": 2.0}
    run = run_app(num_rounds=1, eval_final_images=12, **classes, **settings)
    assert run.summary["status"] == "completed"
