"""ROID: weighted soft likelihood ratios and consistency under augmentation, weight ensembling, prior correction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime, training
from deeppatch.adapt.adapter import TrainedNorms, entropy
from deeppatch.adapt.augmentation import draw
from deeppatch.errors import UserError


@dataclass(frozen=True)
class RoidSettings:
    """The settings of ROID, as published for CIFAR-10-C.

    Args:
        lr: The learning rate of Adam.
        temperature: The temperature of the weights of samples.
        memory: The share of the past in the moving mean of predictions.
        source: The share of the source weights that each step mixes in.
        clip: Probabilities are clipped here in the likelihood ratio.
        batch_size: The losses of a batch are divided by this, whatever its own size, so that a smaller last batch
            counts for less.
        on_logits: Whether answers are logits times the corrected prior, as published, which turns the correction round
            where logits are negative, instead of probabilities times it.
    """

    lr: float = 1e-3
    temperature: float = 1 / 3
    memory: float = 0.9
    source: float = 0.01
    clip: float = 0.99
    batch_size: int = 200
    on_logits: bool = False


class Roid(TrainedNorms):
    """One step of Adam for each batch on certain and diverse samples; the source weights are mixed in after it.

    R. A. Marsden, M. Doebler, B. Yang, Universal Test-time Adaptation through Weight Ensembling, Diversity Weighting,
    and Prior Correction, WACV 2024, arXiv 2306.00650, section 3. Weights compare the samples of a batch, so that it is
    not defined for a batch of one image.
    """

    smallest_batch = 2

    def __init__(self, model: nn.Module, settings: RoidSettings | None = None, *, seed: int = 2021) -> None:
        self.settings, self.seed = settings or RoidSettings(), seed
        super().__init__(model)
        self._forget()

    def _forget(self) -> None:
        self.mean: Tensor | None = None
        self.generator = runtime.generator(self.seed, "roid")

    @property
    def depends_on_neighbours(self) -> bool:
        """The prior is corrected by the predictions of the whole batch."""
        return True

    def new_optimizer(self) -> torch.optim.Optimizer:
        """Return Adam in its initial state."""
        return training.adam(self.parameters, lr=self.settings.lr)[0]

    @torch.enable_grad()
    def predict(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) of float pixels (N, 3, H, W) in [0, 1], and adapt to them."""
        logits = self.forward(self.checked(pixels))
        weights = self.weigh(logits.detach())
        kept = weights > 0
        view = draw(self.generator, padding="reflect", blur_and_noise=False)
        again = self.forward(view(pixels[kept], self.generator))
        ratios = (weights * soft_likelihood_ratio(logits, self.settings.clip)).sum()
        consistency = (weights[kept] * symmetric_cross_entropy(logits[kept], again)).sum()
        loss = (ratios + consistency) / self.settings.batch_size
        self.step(loss)
        with torch.no_grad():
            for parameter, start in zip(self.parameters, self.start, strict=True):
                parameter.lerp_(start, self.settings.source)
        self.passes.train += len(pixels) + int(kept.sum())
        return correct_prior(logits.detach(), on_logits=self.settings.on_logits)

    def weigh(self, logits: Tensor) -> Tensor:
        """Return the weights (N,) of samples, 0 for those that are not diverse, and move the mean prediction."""
        probabilities = logits.softmax(1)
        classes = logits.shape[1]
        mean = logits.new_full((classes,), 1 / classes) if self.mean is None else self.mean
        diversity = _scaled(1 - F.cosine_similarity(mean.unsqueeze(0), probabilities))
        certainty = _scaled(-entropy(logits))
        self.mean = self.settings.memory * mean + (1 - self.settings.memory) * probabilities.mean(0)
        weights = (diversity * certainty / self.settings.temperature).exp()
        return torch.where(diversity < diversity.mean(), 0, weights)

    @torch.no_grad()
    def answer(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) as the method now is, without adapting."""
        return correct_prior(super().answer(self.checked(pixels)), on_logits=self.settings.on_logits)

    def reset(self) -> None:
        """Return to the original scales and shifts, and forget predictions and random numbers."""
        super().reset()
        self._forget()


def soft_likelihood_ratio(logits: Tensor, clip: float) -> Tensor:
    """Return -sum p log(p / (1 - p) + 1e-5) (N,), p the softmax of logits (N, C), clipped from above."""
    probabilities = logits.softmax(1).clamp(max=clip)
    return -(probabilities * (probabilities / (1 - probabilities) + 1e-5).log()).sum(1)


def symmetric_cross_entropy(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean (N,) of both cross entropies between the softmax of logits (N, C)."""
    forth, back = (-(a.softmax(1) * b.log_softmax(1)).sum(1) for a, b in ((one, other), (other, one)))
    return (forth + back) / 2


def correct_prior(logits: Tensor, *, on_logits: bool = False) -> Tensor:
    """Return logits (N, C) whose softmax is multiplied by the smoothed mean prediction of the batch.

    >>> correct_prior(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).argmax(1)
    tensor([0, 1])
    """
    count, classes = logits.shape
    prior = logits.softmax(1).mean(0)
    smoothing = max(1 / count, 1 / classes) / prior.max()
    smoothed = (prior + smoothing) / (1 + smoothing * classes)
    return logits * smoothed if on_logits else logits + smoothed.log()


def _scaled(values: Tensor) -> Tensor:
    """Map values (N,) linearly to [0, 1]."""
    low, high = values.min(), values.max()
    if not bool(high > low):
        raise UserError("roid is not defined for a batch whose predictions are all alike: it compares them")
    return (values - low) / (high - low)
