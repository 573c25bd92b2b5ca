"""The genetic search of Sensei over the parameters of spatial transformations, for all images of a batch at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deeppatch import runtime
from deeppatch.data.corruptions import Spatial
from deeppatch.data.corruptions.spatial import BOUNDS, RINGS, transformed

# the unit in which each parameter is kept as a whole number, and how many of them a mutation adds or takes away
UNITS = {"rotate": 1.0, "right": 1.0, "down": 1.0, "shear": 0.005, "zoom": 0.01, "brightness": 2.0, "contrast": 0.025}
MUTATIONS = {"rotate": 6, "right": 1, "down": 1, "shear": 4, "zoom": 2, "brightness": 2, "contrast": 2}
DOUBLED = ("rotate", "shear")  # mutations of these are twice as large for images that are robust
GENES = len(BOUNDS)
KEPT = 0.4  # the share of a population that an image keeps from one epoch to the next
LARGEST = 100
TRIES = 10


@dataclass(frozen=True)
class Evolution:
    """How settings evolve.

    Args:
        size: The number of candidates of an image, P.
        threshold: The loss below which an image is robust: it is not evaluated in the next epoch.
        crossover: The probability that children are crossed over, and not mutated.
        seed: The seed of all random choices.
    """

    size: int
    threshold: float
    crossover: float
    seed: int


class Population:
    """The worst settings of each image, which are the parents of its next candidates.

    Args:
        images: The number of images, N.
        corruption: The transformation; settings are within the bounds of its highest severity.
        losses: Returns the loss of each image by the network as it is.
        evolution: The settings of the search.
        device: Where the images are.
    """

    def __init__(
        self,
        images: int,
        corruption: Spatial,
        losses: Callable[[Tensor, Tensor], Tensor],
        evolution: Evolution,
        device: torch.device,
    ) -> None:
        self.losses, self.evolution, self.size = losses, evolution, evolution.size
        self.kept = max(1, int(KEPT * self.size + 1e-9))
        share = max(corruption.severities) / RINGS
        bounds = [int(share * BOUNDS[name] / unit + 1e-9) for name, unit in UNITS.items()]
        self.bounds = torch.tensor(bounds, device=device)
        self.settings = torch.zeros(images, self.kept, GENES, dtype=torch.int8, device=device)
        self.worst = torch.full((images,), torch.inf, device=device)
        self.robust = torch.zeros(images, dtype=torch.bool, device=device)
        self.evaluated = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the settings (N, kept, 7), the loss of the worst one (N,), who is robust, and what was evaluated."""
        return {name: getattr(self, name) for name in ("settings", "worst", "robust", "evaluated")}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take the state that `state_dict` returned."""
        for name in ("settings", "worst", "robust"):
            setattr(self, name, state[name].to(self.bounds.device))
        self.evaluated = state["evaluated"]

    def __call__(self, index: Tensor, pixels: Tensor, labels: Tensor, levels: Tensor, epoch: int, start: int) -> Tensor:
        """Return the images of a batch, (N, 3, H, W), each in its worst setting, and keep the worst ones.

        `index` are the places of the images in the population, and `levels` are not read.
        """
        generator = runtime.generator(self.evolution.seed, "population", epoch, start)
        first = epoch == 0
        known = self.first(len(index), generator) if first else self.settings[index].long()
        children = self.children(known, self.worst[index] < self.evolution.threshold, generator)
        searched = ~self.robust[index]
        self.robust[index] = False  # looked at again in the next epoch
        if searched.any():
            self._keep(index[searched], torch.cat([known, children], 1)[searched], pixels[searched], labels[searched])
        return transformed(pixels, parameters(self.settings[index][:, 0]))

    def _keep(self, index: Tensor, candidates: Tensor, pixels: Tensor, labels: Tensor) -> None:
        """Evaluate candidates (N, K, 7), and keep the worst of each image, in descending order."""
        found = [self.losses(transformed(pixels, parameters(each)), labels) for each in candidates.unbind(1)]
        self.evaluated += candidates.shape[0] * candidates.shape[1]
        losses, order = torch.stack(found, 1).sort(stable=True, dim=1, descending=True)
        chosen = order[:, : self.kept].unsqueeze(2).expand(-1, -1, GENES)
        self.settings[index] = candidates.gather(1, chosen).to(torch.int8)
        self.worst[index] = losses[:, 0]
        self.robust[index] = losses[:, 0] < self.evolution.threshold

    def first(self, count: int, generator: torch.Generator) -> Tensor:
        """Return first settings, int64 (count, P, 7): the identity, and others that are uniform within the bounds."""
        drawn = torch.rand(count, self.size - 1, GENES, generator=generator).to(self.bounds.device)
        settings = (drawn * (2 * self.bounds + 1)).long().clamp(max=2 * self.bounds) - self.bounds
        return torch.cat([settings.new_zeros(count, 1, GENES), settings], 1)

    def children(self, known: Tensor, doubled: Tensor, generator: torch.Generator) -> Tensor:
        """Return children of the first settings of `known`, int64 (N, K, 7), that differ from all of them, if possible.

        All of a batch are mutated, or all are crossed over with the setting that differs most; those that are known
        are mutated again, up to ten times. `doubled` says whose mutations are twice as large, bool (N,).
        """
        mutate = torch.rand((), generator=generator).item() >= self.evolution.crossover or known.shape[1] == 1
        found = self.mutated(known[:, 0], doubled, generator) if mutate else self.crossed(known, generator)
        for _ in range(TRIES):
            twice = _is_known(found, known)
            again = self.mutated(known[:, 0], doubled, generator)  # drawn always, so that an image is as if alone
            found = torch.where(twice.unsqueeze(2), again, found)
        return found

    def mutated(self, parent: Tensor, doubled: Tensor, generator: torch.Generator) -> Tensor:
        """Return settings (N, P - kept, 7) in which half of the genes of a parent (N, 7) are changed.

        A gene goes up or down by a step, or changes its sign, within its bound.
        """
        shape, device = (len(parent), self.size - self.kept, GENES), parent.device
        order = torch.rand(shape, generator=generator).argsort(2).argsort(2).to(device)
        action = torch.randint(3, shape, generator=generator).to(device)
        steps = torch.tensor(list(MUTATIONS.values()), device=device)
        twice = torch.tensor([name in DOUBLED for name in MUTATIONS], device=device) & doubled.unsqueeze(1)
        step = torch.where(twice, 2 * steps, steps).unsqueeze(1)
        parent = parent.unsqueeze(1)
        changed = torch.where(action == 0, parent + step, torch.where(action == 1, parent - step, -parent))
        changed = torch.minimum(torch.maximum(changed, -self.bounds), self.bounds)
        return torch.where(order < -(-GENES // 2), changed, parent)

    def crossed(self, known: Tensor, generator: torch.Generator) -> Tensor:
        """Return settings (N, P - kept, 7) with some genes of the first setting and the others of another one.

        The other is the one that differs from the first in most genes; the choices of genes are all different.
        """
        worst, others = known[:, :1], known[:, 1:]
        place = (others != worst).sum(2).argmax(1)
        partner = others[torch.arange(len(others), device=others.device), place].unsqueeze(1)
        masks = torch.rand(len(known), 2**GENES - 2, generator=generator).argsort(1)[:, : self.size - self.kept] + 1
        bits = (masks.unsqueeze(2) >> torch.arange(GENES)) & 1
        return torch.where(bits.bool().to(known.device), partner, worst)


def parameters(settings: Tensor) -> Tensor:
    """Return whole numbers of units (N, 7) as the parameters that `transformed` takes, float64 (N, 7)."""
    return settings.double() * torch.tensor(list(UNITS.values()), dtype=torch.float64, device=settings.device)


def _is_known(children: Tensor, known: Tensor) -> Tensor:
    """Return which children (N, K, 7) are among known settings (N, M, 7) or earlier children, bool (N, K)."""
    old = (children.unsqueeze(2) == known.unsqueeze(1)).all(3).any(2)
    pairs = (children.unsqueeze(2) == children.unsqueeze(1)).all(3)
    return old | pairs.tril(-1).any(2)
