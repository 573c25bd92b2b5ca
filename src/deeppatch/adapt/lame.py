"""LAME: correct the predictions of a batch so that images with similar features get similar ones, without training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.adapt.adapter import Adapter
from deeppatch.features import last_linear
from deeppatch.graph.hooks import hooked_before


@dataclass(frozen=True)
class LameSettings:
    """The settings of LAME, as published.

    Args:
        neighbours: For `lame` the width of the kernel is the mean distance to this neighbour, the image itself the
            first; for `lame-knn` the number of neighbours, without the image itself.
        most: The largest number of iterations.
        tolerance: Iterations end where the energy changes by no more than this share.
    """

    neighbours: int = 5
    most: int = 100
    tolerance: float = 1e-8


class Lame(Adapter):
    """Source statistics and weights; the predictions of each batch are those of lowest Laplacian energy.

    M. Boudiaf et al., Parameter-free Online Test-time Adaptation, CVPR 2022, arXiv 2201.05718, equation 5 and
    algorithm 1, with the kernel of the published code: a radial basis function, its diagonal kept.
    """

    def __init__(self, model: nn.Module, settings: LameSettings | None = None) -> None:
        super().__init__(model)
        self.settings = settings or LameSettings()
        self.head: nn.Module | None = None

    @property
    def depends_on_neighbours(self) -> bool:
        """Every answer depends on the other images of the batch."""
        return True

    def predict(self, pixels: Tensor) -> Tensor:
        """Return log-probabilities (N, C) of float pixels (N, 3, H, W) in [0, 1]."""
        self.passes.forward += len(pixels)
        return self.answer(pixels)

    @torch.no_grad()
    def answer(self, pixels: Tensor) -> Tensor:
        """Return log-probabilities (N, C); UserError when the network does not end in a linear layer."""
        if self.head is None:
            self.head = last_linear(self.model, pixels[:1])[1]
        found: list[Tensor] = []
        with hooked_before(self.head, lambda _module, inputs: found.append(inputs[0].float())):
            probabilities = self.model(pixels).float().softmax(1)
        kernel = self.affinity(found[0])
        return corrected(probabilities, kernel, most=self.settings.most, tolerance=self.settings.tolerance)

    def affinity(self, features: Tensor) -> Tensor:
        """Return the similarity (N, N) of features (N, D)."""
        return affinity(features, self.settings.neighbours)


class LameKnn(Lame):
    """LAME with the kernel of its paper: 1 for the five nearest neighbours of an image, without itself, else 0."""

    def affinity(self, features: Tensor) -> Tensor:
        """Return the similarity (N, N) of features (N, D)."""
        return neighbourhood(features, self.settings.neighbours)


def neighbourhood(features: Tensor, neighbours: int) -> Tensor:
    """Return (N, N): 1 where column j is among the nearest neighbours of row i, else 0; features (N, D) at unit length.

    >>> neighbourhood(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 1)
    tensor([[0., 1., 0.],
            [1., 0., 0.],
            [0., 1., 0.]])
    """
    unit = F.normalize(features, dim=1)
    distances = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    nearest = distances.topk(min(neighbours, len(unit) - 1), largest=False).indices
    return torch.zeros_like(distances).scatter_(1, nearest, 1.0)


def affinity(features: Tensor, neighbours: int) -> Tensor:
    """Return the similarity (N, N) of features (N, D): exp(-d^2 / (2 s^2)), d their distance at unit length.

    The width s is the mean distance to the neighbour of that number, the image itself the first.

    >>> affinity(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), 5)
    tensor([[1., 1.],
            [1., 1.]])
    """
    unit = F.normalize(features, dim=1)
    distances = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(min(neighbours, len(unit)), largest=False).values[:, -1]
    width = nearest.mean().clamp(min=torch.finfo(distances.dtype).tiny ** 0.5)  # equal features have similarity 1
    return (-((distances / width) ** 2) / 2).exp()


def corrected(probabilities: Tensor, kernel: Tensor, *, most: int = 100, tolerance: float = 1e-8) -> Tensor:
    """Return the logarithm of the assignments (N, C) that iterations from probabilities (N, C) lead to.

    Each is the softmax of log(p) + K Y; no iteration raises sum(-Y log p + Y log Y) - tr(Y' K Y) / 2, because the
    kernel K (N, N) is symmetric and positive semidefinite.
    """
    log_prior = (probabilities + 1e-10).log()
    found, before = log_prior.log_softmax(1), None
    for iteration in range(most):
        pull = kernel @ found.exp()
        found = (log_prior + pull).log_softmax(1)
        share = found.exp()
        energy = (share * (found - log_prior - kernel @ share)).sum().item()
        if iteration > 1 and before is not None and abs(energy - before) <= tolerance * abs(before):
            break
        before = energy
    return found
