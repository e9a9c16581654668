"""Membership inference: by hand, on scores whose success is known, and on models of tensors."""

import numpy as np
import pytest
import torch

from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler
from fedddpm_app.evaluation.membership import (
    NOISE_LEVELS,
    auc_of,
    by_distance,
    by_likelihood_ratio,
    by_threshold,
    log_losses,
    losses_of,
    measure,
    roc_of,
    true_positives,
)


def test_auc_and_rates_by_hand():
    """Of 2 x 3 pairs, 4 are in order and one is a tie."""
    members, others = np.array([3.0, 1.0]), np.array([0.0, 1.0, 2.0])
    assert auc_of(members, others) == (4 + 0.5) / 6
    assert true_positives(members, others) == 0.5  # above 2
    assert true_positives(members, others, rate=0.4) == 0.5  # above 1: one of the others is
    assert true_positives(members, others, rate=0.7) == 1.0
    false, true = roc_of(members, others)
    assert list(zip(false.round(3), true, strict=True)) == [(0, 0), (0, 0.5), (0.333, 0.5), (0.667, 1.0), (1.0, 1.0)]


def test_a_guess_has_one_half_in_its_interval_and_success_has_not():
    random = np.random.default_rng(0)
    guess = measure("guess", random.normal(size=200), random.normal(size=300), 0)
    assert guess.auc_interval[0] < 0.5 < guess.auc_interval[1]
    assert guess.auc_interval[0] < guess.auc < guess.auc_interval[1]
    assert guess.tpr < 0.06
    found = measure("found", random.normal(size=200) + 3, random.normal(size=300), 0)
    assert found.auc_interval[0] > 0.95
    assert found.tpr > 0.5
    assert (found.to_dict()["members"], found.to_dict()["others"]) == (200, 300)
    assert measure("again", found.members, found.others, 0).auc_interval == found.auc_interval


@pytest.mark.slow
@pytest.mark.long
def test_the_interval_covers_the_true_value_as_often_as_it_says():
    """AUC of two normals one deviation apart: Phi(1 / sqrt 2) = 0.760."""
    random, covered = np.random.default_rng(1), 0
    for _ in range(60):
        low, high = measure("", random.normal(size=80) + 1, random.normal(size=80), 0).auc_interval
        covered += low < 0.7602 < high
    assert covered >= 51  # 95 % of 60 is 57; fewer than 51 have a probability of 0.5 %


@pytest.mark.parametrize(("members", "others"), [([1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0]), ([1.0, np.nan], [1.0, 2.0])])
def test_scores_that_say_nothing_are_refused(members, others):
    with pytest.raises(ValueError, match="at least 2 finite ones each"):
        measure("", np.array(members), np.array(others), 0)


def test_the_likelihood_ratio_by_hand():
    """Image 0: in at losses 1 and 2, out at 4; image 1: in at 2, out at 6 and 5: the gap is (2.5 + 3.5) / 2.

    With the gap added to what a reference model has seen: 4, 5, 4 and 5, 6, 5, whose means are 13 / 3 and 16 / 3.
    """
    references = [np.array([1.0, 2.0]), np.array([2.0, 6.0]), np.array([4.0, 5.0])]
    inside = [np.array([True, True]), np.array([True, False]), np.array([False, False])]
    variance = 2 * (2 / 3) / (6 - 2)
    found = by_likelihood_ratio(np.array([1.5, 5.5]), references, inside)
    without = np.array([1.5 - 13 / 3, 5.5 - 16 / 3])
    assert found.tolist() == pytest.approx((without**2 - (without + 3) ** 2) / (2 * variance))
    with pytest.raises(ValueError, match="1 reference models: at least 2"):
        by_likelihood_ratio(np.array([1.5, 5.5]), references[:1], inside[:1])


def test_an_image_that_all_reference_models_saw_is_judged_by_the_gap_of_the_others():
    references = [np.array([1.0, 2.0]), np.array([1.1, 6.0])]
    inside = [np.array([True, True]), np.array([True, False])]
    found = by_likelihood_ratio(np.array([1.0, 6.0]), references, inside)
    assert found[0] > 0 > found[1]


def test_reference_models_that_know_their_images_less_than_the_target_still_help():
    """They say how difficult an image is; a gap of each image's own would turn the scores of many around."""
    random = np.random.default_rng(0)
    difficulty, member = random.normal(size=600) * 0.3, np.arange(600) < 300
    inside = [chosen for _ in range(2) for first in [random.random(600) < 0.5] for chosen in (first, ~first)]
    target = difficulty - 0.3 * member + random.normal(size=600) * 0.1
    references = [difficulty - 0.05 * seen + random.normal(size=600) * 0.1 for seen in inside]
    ratio = by_likelihood_ratio(target, references, inside)
    assert measure("", -target[member], -target[~member], 0).auc < 0.8
    assert measure("", ratio[member], ratio[~member], 0).auc > 0.9


def test_the_likelihood_ratio_finds_members_that_a_threshold_does_not():
    """Every image has a difficulty of its own, which is larger than what membership changes."""
    random = np.random.default_rng(0)
    difficulty, member = random.normal(size=400) * 5, np.arange(400) < 200
    inside = [random.random(400) < 0.5 for _ in range(8)]

    def losses(seen):
        return difficulty - seen + random.normal(size=400) * 0.3

    target, references = losses(member), [losses(seen) for seen in inside]
    threshold = measure("", -target[member], -target[~member], 0)
    ratio = by_likelihood_ratio(target, references, inside)
    assert threshold.auc < 0.65
    assert measure("", ratio[member], ratio[~member], 0).auc > 0.9


class Knows(torch.nn.Module):
    """Predicts the noise exactly for images that it knows, and 0 for others."""

    def __init__(self, known, scheduler):
        super().__init__()
        self.known, self.abar = known, scheduler.alphas_cumprod

        self.place = torch.nn.Parameter(torch.zeros(()))  # says on which device the model is

    def forward(self, x_t, t, return_dict=False, **_):
        abar = self.abar[t][:, None, None, None]
        noise = (x_t[:, None] - abar.sqrt()[:, None] * self.known[None]) / (1 - abar).sqrt()[:, None]
        nearest = noise.flatten(2).var(2).sub(1).abs().argmin(1)
        picked = noise[torch.arange(len(x_t)), nearest]
        found = picked.flatten(1).std(1) < 1.3
        return (torch.where(found[:, None, None, None], picked, torch.zeros_like(picked)),)


def test_a_model_that_knows_its_images_is_found_out(config):
    scheduler = create_noise_scheduler(config.diffusion)
    objective = DenoisingObjective(scheduler)
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    members, others = ImageTensors(images[:20]), ImageTensors(images[20:])
    model = Knows(members.batch(torch.arange(20)).images, scheduler)
    losses = [losses_of(model, objective, data, 2, seed=3) for data in (members, others)]
    assert losses[0].shape == (20, len(NOISE_LEVELS))
    assert torch.equal(losses[0], losses_of(model, objective, members, 2, seed=3))
    assert not torch.equal(losses[1], losses_of(model, objective, others, 2, seed=4))
    attack = measure("threshold", by_threshold(losses[0]), by_threshold(losses[1]), 0)
    assert attack.auc > 0.9
    assert log_losses(losses[1]).shape == (20,)


def test_generated_images_near_to_members_give_them_away():
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    generated = torch.cat([images[:20], images[40:]])
    assert auc_of(by_distance(images[:20], generated, 10), by_distance(images[20:40], generated, 10)) == 1.0


def test_a_mirror_image_gives_a_member_away_where_models_were_trained_on_it():
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    generated = torch.cat([images[:20].flip(-1), images[40:]])
    scores = [by_distance(part, generated, 10, mirrored=True) for part in (images[:20], images[20:40])]
    assert auc_of(*scores) == 1.0
    assert auc_of(*(by_distance(part, generated, 10) for part in (images[:20], images[20:40]))) < 0.9
