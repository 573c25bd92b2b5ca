"""Tent: minimise the entropy of the predictions on each batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch import training
from deeppatch.adapt.adapter import TrainedNorms, entropy


@dataclass(frozen=True)
class TentSettings:
    """The learning rate of Adam."""

    lr: float = 1e-3


class Tent(TrainedNorms):
    """One step of Adam for each batch on the mean entropy of its predictions.

    D. Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021, arXiv 2006.10726, section 3.
    """

    def __init__(self, model: nn.Module, settings: TentSettings | None = None) -> None:
        self.settings = settings or TentSettings()
        super().__init__(model)

    def new_optimizer(self) -> torch.optim.Optimizer:
        """Return Adam in its initial state."""
        return training.adam(self.parameters, lr=self.settings.lr)[0]

    @torch.enable_grad()
    def predict(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) of float pixels (N, 3, H, W) in [0, 1], and adapt to them."""
        logits = self.forward(pixels)
        self.step(entropy(logits).mean())
        self.passes.train += len(pixels)
        return logits.detach()
