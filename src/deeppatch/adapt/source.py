"""No adaptation: the network as it is, and fixed networks, to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch.adapt.adapter import Adapter

SAME = 1e-3  # logits of one image that differ by less come from kernels that are chosen by the number of images


@dataclass(frozen=True)
class SourceSettings:
    """There is nothing to set."""


class Source(Adapter):
    """The network as it is."""

    def __init__(self, model: nn.Module, settings: SourceSettings | None = None) -> None:
        super().__init__(model)

    @property
    def depends_on_neighbours(self) -> bool:
        """No answer depends on another image."""
        return False

    def predict(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) of float pixels (N, 3, H, W) in [0, 1]."""
        self.passes.forward += len(pixels)
        return self.answer(pixels)

    @torch.no_grad()
    def answer(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C)."""
        return self.model(pixels)


class FixedNetwork(Source):
    """A network that does not adapt; whether its answers depend on neighbours is measured on the first batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.dependent: bool | None = None

    @property
    def depends_on_neighbours(self) -> bool:
        """Whether the first image had other logits alone than in its batch."""
        return bool(self.dependent)

    def predict(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) of float pixels (N, 3, H, W) in [0, 1]."""
        logits = super().predict(pixels)
        if self.dependent is None and len(pixels) > 1:
            self.dependent = not torch.allclose(self.answer(pixels[:1]), logits[:1], rtol=SAME, atol=SAME)
        return logits
