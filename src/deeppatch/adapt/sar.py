"""SAR: sharpness-aware entropy minimisation on reliable samples, with a reset where the network collapses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch import training
from deeppatch.adapt.adapter import TrainedNorms, entropy


@dataclass(frozen=True)
class SarSettings:
    """The settings of SAR, as published for CIFAR-10-C.

    Args:
        lr: The learning rate of SGD.
        momentum: Its momentum.
        margin: Samples of lower entropy are reliable; a share of ln C.
        radius: The length of the step to the sharpest point nearby.
        memory: The share of the past in the moving mean of the entropy.
        reset_below: The network is reset where that mean is below this, in nats.
        left_out: Layers of which a part of the name is one of these are not trained.
    """

    lr: float = 1e-3
    momentum: float = 0.9
    margin: float = 0.4
    radius: float = 0.05
    memory: float = 0.9
    reset_below: float = 0.2
    left_out: tuple[str, ...] = ("layer4",)


class Sar(TrainedNorms):
    """One step of SGD for each batch, with the gradient at a point nearby where the entropy is higher.

    S. Niu et al., Towards Stable Test-Time Adaptation in Dynamic Wild World, ICLR 2023, arXiv 2302.12400, equations 2
    to 5. Without reliable samples there is no step.
    """

    def __init__(self, model: nn.Module, settings: SarSettings | None = None) -> None:
        self.settings = settings or SarSettings()
        self.mean_entropy: float | None = None
        super().__init__(model, self.settings.left_out)

    def new_optimizer(self) -> torch.optim.Optimizer:
        """Return SGD in its initial state."""
        return training.constant_sgd(
            self.parameters, lr=self.settings.lr, momentum=self.settings.momentum, weight_decay=0
        )[0]

    @torch.enable_grad()
    def predict(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) of float pixels (N, 3, H, W) in [0, 1], and adapt to them."""
        logits = self.forward(pixels)
        limit = self.settings.margin * math.log(logits.shape[1])
        uncertainty = entropy(logits)
        reliable = uncertainty.detach() < limit
        if not bool(reliable.any()):
            self.passes.forward += len(pixels)
            return logits.detach()
        gradients = self._gradients(uncertainty[reliable].mean())
        self.passes.train += 2 * len(pixels)
        before = self._climb(gradients)
        second = entropy(self.forward(pixels))
        kept = reliable & (second.detach() < limit)
        found = None
        if bool(kept.any()):
            loss = second[kept].mean()
            found, gradients = loss.item(), self._gradients(loss)
        self._return_to(before)
        if found is not None:
            self.step(gradients)
            self._watch(found)
        return logits.detach()

    def _gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, self.parameters, materialize_grads=True)

    @torch.no_grad()
    def _climb(self, gradients: tuple[Tensor, ...]) -> list[Tensor]:
        """Move the parameters along the gradient by the radius, and return where they were."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        length = torch.stack([gradient.norm() for gradient in gradients]).norm() + 1e-12
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.add_(self.settings.radius * gradient / length)
        return before

    @torch.no_grad()
    def _return_to(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def _watch(self, found: float) -> None:
        """Update the moving mean of the entropy, and reset the network where it is too low."""
        memory = self.settings.memory
        mean = found if self.mean_entropy is None else memory * self.mean_entropy + (1 - memory) * found
        self.mean_entropy = mean
        if mean < self.settings.reset_below:
            self.resets += 1
            self.reset()

    def reset(self) -> None:
        """Return to the original scales and shifts, and forget optimizer and entropy."""
        super().reset()
        self.mean_entropy = None
