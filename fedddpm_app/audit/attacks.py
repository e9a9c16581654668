"""The attacks of an audit: membership inference on models and on D_aux, and near copies among generated images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from fedddpm_app.audit.pools import Pool, pool_of
from fedddpm_app.audit.targets import Kind, Target, Targets
from fedddpm_app.auxiliary.gate import Gate
from fedddpm_app.config import Config
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.diffusion.objective import DenoisingObjective
from fedddpm_app.evaluation.membership import (
    Attack,
    Scores,
    by_distance,
    by_likelihood_ratio,
    by_threshold,
    log_losses,
    losses_of,
    measure,
)
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.progress import ProgressEvent, note, report
from fedddpm_app.seeding import derive_seed

THRESHOLD, RATIO, DISTANCE = "threshold on the loss", "likelihood ratio", "distance to D_aux"


@dataclass(frozen=True)
class Effort:
    """How much an attacker tries.

    Attributes
    ----------
    images : int
        The most members, and the most other images, per target.
    draws : int
        Noises per image and noise level.
    references : int
        Reference models per target; 0 leaves the likelihood ratio out, 1 is not enough for it.
    """

    images: int
    draws: int
    references: int


@dataclass(frozen=True)
class Copies:
    """Near copies of training images among generated ones.

    Attributes
    ----------
    name : str
        The generated images.
    share, expected : float
        Their share, and that of real images that are not copies.
    count : int
        The number of generated images.
    """

    name: str
    share: float
    expected: float
    count: int


@dataclass(frozen=True)
class Attempt:
    """An attack on a target, by its name and kind."""

    target: str
    kind: Kind
    attack: Attack


@dataclass(frozen=True)
class Findings:
    """The results of an audit: attacks, in the order of their targets, and near copies."""

    attacks: list[Attempt]
    copies: list[Copies]

    def to_dict(self) -> dict[str, object]:
        """Return the results for a JSON file."""
        return {
            "attacks": [{"target": each.target, **each.attack.to_dict()} for each in self.attacks],
            "copies": [copies.__dict__ for copies in self.copies],
        }


class Audit:
    """Tries all attacks on a run.

    Parameters
    ----------
    run_dir : Path
        The directory of a completed run.
    config : Config
        Its config.
    task : DiffusionTask
        Its task, with the images that this host has.
    clients : sequence of int
        The clients whose images this host has.
    effort : Effort
        The effort.
    """

    def __init__(
        self, run_dir: Path, config: Config, task: DiffusionTask, clients: Sequence[int], effort: Effort
    ) -> None:
        self._config = config
        self._task = task
        self._clients = clients
        self._effort = effort
        self._targets = Targets(run_dir, config, task, clients)
        self._objective = DenoisingObjective(
            task.scheduler, loss=config.diffusion.loss, weighting=config.diffusion.loss_weighting
        )

    def run(self, samples: Tensor | None, auxiliary: tuple[ImageTensors, list[int]] | None) -> Findings:
        """Return the findings.

        Parameters
        ----------
        samples : Tensor or None
            Images of the final model, uint8 (N, C, H, W).
        auxiliary : tuple of ImageTensors and list of int, or None
            D_aux, and the client of each image.
        """
        self._targets.check_clients()
        attacks, copies = [], []
        targets = [*self._targets.final(), *self._targets.uploaded()]
        for number, target in enumerate(targets):
            report(ProgressEvent("audit", number, len(targets), 0))
            attacks += [Attempt(target.name, target.kind, attack) for attack in self._attack(target)]
        everything = self._pool(self._targets.trained())
        if samples is not None and everything.is_large_enough:
            copies.append(self._copies("samples of the final model", samples, everything))
        if auxiliary is not None:
            if parts := [client for client in self._clients if client in set(auxiliary[1])]:
                found = self._by_distance(self._pool(parts), auxiliary[0].images)
                attacks += [Attempt("auxiliary set", Kind.AUXILIARY, attack) for attack in found]
            copies += self._copies_of_clients(*auxiliary)
        report(ProgressEvent("audit", len(targets), len(targets), 0))
        return Findings(attacks, copies)

    def _pool(self, clients: Sequence[int]) -> Pool:
        return pool_of(self._task.data, clients, conditional=self._config.data.class_conditional)

    # ---- membership -----------------------------------------------------------------------------

    def _attack(self, target: Target) -> list[Attack]:
        pool, seed = target.pool.at_most(self._effort.images), self._config.run.seed
        if not pool.is_large_enough:
            note(f"{target.name}: {len(pool.others)} images that it was not trained on are too few to attack it")
            return []
        losses = self._losses(target.load(), pool)
        scores = by_threshold(losses)
        found = [self._measure(THRESHOLD, scores, pool)]
        if self._effort.references > 1:
            inside = [self._drawn(pool, number) for number in range(self._effort.references)]
            references = [
                log_losses(self._losses(target.train(_chosen(pool, chosen), number), pool))
                for number, chosen in enumerate(inside)
            ]
            ratio = by_likelihood_ratio(log_losses(losses), references, inside)
            found.append(measure(RATIO, *_split(ratio, pool), seed))
        return found

    def _drawn(self, pool: Pool, number: int) -> np.ndarray:
        """Return which half of a pool a reference model is trained on; each image is in half of the models."""
        count = len(pool.members) + len(pool.others)
        random = np.random.default_rng(derive_seed(self._config.run.seed, "audit-halves", number // 2))
        first = random.permutation(count) < count // 2
        return first if number % 2 == 0 else ~first

    def _losses(self, model: Module, pool: Pool) -> Tensor:
        data = pool.all().to(next(model.parameters()).device)
        return losses_of(model, self._objective, data, self._effort.draws, self._config.run.seed)

    def _by_distance(self, everything: Pool, generated: Tensor) -> list[Attack]:
        pool = everything.at_most(self._effort.images)
        if not pool.is_large_enough:
            return []
        k, mirrored = self._config.evaluation.memorization_neighbours, self._config.data.horizontal_flip
        return [self._measure(DISTANCE, by_distance(pool.all().images, generated, k, mirrored=mirrored), pool)]

    def _measure(self, name: str, scores: Scores, pool: Pool) -> Attack:
        return measure(name, *_split(scores, pool), self._config.run.seed)

    # ---- copies ---------------------------------------------------------------------------------

    def _copies_of_clients(self, data: ImageTensors, clients: list[int]) -> list[Copies]:
        """Return the near copies in each client's part of D_aux."""
        found, owners = [], torch.tensor(clients)
        for client in self._clients:
            images = data.images[owners == client]
            pool = pool_of(self._task.data, [client], conditional=False)
            if len(images) and len(pool.members) > 1:
                found.append(self._copies(f"auxiliary set, part of client {client}", images, pool))
        return found

    def _copies(self, name: str, images: Tensor, pool: Pool) -> Copies:
        """Return the share of near copies, and that of real images by a threshold that others of them set."""
        others = pool.others.images
        share = float(self._gate(pool, others).copies(images).double().mean())
        halves = (others[::2], others[1::2])
        expected = np.nan
        if len(halves[1]):
            pairs = (halves, halves[::-1])
            expected = float(np.mean([self._gate(pool, one).copies(two).double().mean() for one, two in pairs]))
        return Copies(name, share, expected, len(images))

    def _gate(self, pool: Pool, held_out: Tensor) -> Gate:
        settings = self._config.evaluation
        return Gate(
            pool.members.images,
            held_out,
            neighbours=settings.memorization_neighbours,
            rate=settings.memorization_rate,
            mirrored=self._config.data.horizontal_flip,
        )


def _split(scores: Scores, pool: Pool) -> tuple[Scores, Scores]:
    return scores[: len(pool.members)], scores[len(pool.members) :]


def _chosen(pool: Pool, inside: np.ndarray) -> ImageTensors:
    return pool.all().select(torch.from_numpy(inside).nonzero().flatten())
