"""EATA: entropy of the reliable and diverse samples of a batch, held near the source weights where these matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime, training
from deeppatch.adapt.adapter import TrainedNorms, entropy
from deeppatch.data.images import to_float
from deeppatch.errors import UserError


@dataclass(frozen=True)
class EataSettings:
    """The settings of EATA, as published for CIFAR-10-C.

    Args:
        lr: The learning rate of Adam.
        margin: Samples of lower entropy are reliable; a share of ln C.
        similarity: Samples whose cosine with the mean prediction is below this are diverse.
        memory: The share of the past in the moving mean of predictions.
        weight: The weight of the penalty.
        fisher_images: The number of source images that the importances are estimated on.
        fisher_batch: The number of images in a batch of these.
    """

    lr: float = 1e-3
    margin: float = 0.4
    similarity: float = 0.4
    memory: float = 0.9
    weight: float = 1.0
    fisher_images: int = 2000
    fisher_batch: int = 200


class Eta(TrainedNorms):
    """One step of Adam for each batch on the weighted entropy of its reliable and diverse samples.

    S. Niu et al., Efficient Test-Time Model Adaptation without Forgetting, ICML 2022, arXiv 2204.02610, equations 2 to
    5. Without such samples there is no step.
    """

    def __init__(self, model: nn.Module, settings: EataSettings | None = None) -> None:
        self.settings = settings or EataSettings()
        self.mean: Tensor | None = None
        super().__init__(model)

    def new_optimizer(self) -> torch.optim.Optimizer:
        """Return Adam in its initial state."""
        return training.adam(self.parameters, lr=self.settings.lr)[0]

    def penalty(self) -> Tensor | float:
        """Return what is added to the loss."""
        return 0.0

    @torch.enable_grad()
    def predict(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) of float pixels (N, 3, H, W) in [0, 1], and adapt to them."""
        logits = self.forward(pixels)
        uncertainty = entropy(logits)
        limit = self.settings.margin * math.log(logits.shape[1])
        kept = self.select(logits.detach(), uncertainty.detach() < limit)
        if not bool(kept.any()):
            self.passes.forward += len(pixels)
            return logits.detach()
        chosen = uncertainty[kept]
        loss = ((limit - chosen.detach()).exp() * chosen).mean() + self.penalty()
        self.step(loss)
        self.passes.train += len(pixels)
        return logits.detach()

    def select(self, logits: Tensor, reliable: Tensor) -> Tensor:
        """Return which samples (N,) are reliable and diverse, and move the mean prediction towards theirs."""
        probabilities = logits.softmax(1)
        kept = reliable
        if self.mean is not None:
            similarity = F.cosine_similarity(self.mean.unsqueeze(0), probabilities).abs()
            kept = reliable & (similarity < self.settings.similarity)
        if bool(kept.any()):
            found, memory = probabilities[kept].mean(0), self.settings.memory
            self.mean = found if self.mean is None else memory * self.mean + (1 - memory) * found
        return kept

    def reset(self) -> None:
        """Return to the original scales and shifts, and forget earlier predictions."""
        super().reset()
        self.mean = None


class Eata(Eta):
    """ETA with a penalty on moving parameters that matter on source images (equations 8 and 9 of the paper).

    Importances are the squared gradients of the mean cross entropy of batches against the network's own predictions,
    averaged over batches: as in the published code a square of a mean over images, not a mean of squares.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        settings: The settings; None for the published ones.
        source: Source images without labels, uint8 or float pixels (N, 3, H, W); the first `fisher_images` are read.
    """

    def __init__(self, model: nn.Module, settings: EataSettings | None = None, *, source: Tensor | None = None) -> None:
        if source is None or not len(source):
            raise UserError("eata reads source images; give some training images, or choose eta, which reads none")
        super().__init__(model, settings)
        self.importances = self._importances(source[: self.settings.fisher_images])

    def penalty(self) -> Tensor | float:
        """Return the weighted sum of importance times squared distance from the source weights."""
        triples = zip(self.importances, self.parameters, self.start, strict=True)
        return self.settings.weight * sum((each * (now - start) ** 2).sum() for each, now, start in triples)

    def _importances(self, source: Tensor) -> list[Tensor]:
        summed = [torch.zeros_like(parameter) for parameter in self.parameters]
        batches = source.split(self.settings.fisher_batch)
        for batch in batches:
            logits = self.forward(to_float(batch).to(self.parameters[0].device))
            with torch.enable_grad(), runtime.explained_single_images():
                loss = F.cross_entropy(logits, logits.detach().argmax(1))
            gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            for total, gradient in zip(summed, gradients, strict=True):
                total.add_(gradient**2 / len(batches))
        return summed
