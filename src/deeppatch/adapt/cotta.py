"""CoTTA: a student learns from the averaged predictions of a slow teacher, and is restored to the source at random."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch import runtime, training
from deeppatch.adapt.adapter import Adapter, use_batch_statistics
from deeppatch.adapt.augmentation import draw


@dataclass(frozen=True)
class CottaSettings:
    """The settings of CoTTA, as published for CIFAR-10-C.

    Args:
        lr: The learning rate of Adam.
        memory: The share of the teacher that each step keeps.
        restored: The probability with which each entry of the student returns to the source after a step.
        confidence: The teacher averages over views where the mean confidence of the source network is below this.
        views: The number of views.
    """

    lr: float = 1e-3
    memory: float = 0.999
    restored: float = 0.01
    confidence: float = 0.92
    views: int = 32


class Cotta(Adapter):
    """One step of Adam for each batch on the cross entropy of student against teacher; all parameters are trained.

    Q. Wang et al., Continual Test-Time Domain Adaptation, CVPR 2022, arXiv 2203.13591, equations 2 to 7. All three
    networks normalise by the statistics of the batch; the answers are the teacher's.
    """

    depends_on_past = True

    def __init__(self, model: nn.Module, settings: CottaSettings | None = None, *, seed: int = 2021) -> None:
        super().__init__(model)
        self.settings, self.seed = settings or CottaSettings(), seed
        use_batch_statistics(self.model)
        self.anchor, self.teacher = copy.deepcopy(self.model), copy.deepcopy(self.model)
        self.model.requires_grad_(True)
        self._begin()

    def _begin(self) -> None:
        self.optimizer = training.adam(self.model.parameters(), lr=self.settings.lr)[0]
        self.generator = runtime.generator(self.seed, "cotta")

    @torch.enable_grad()
    def predict(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) of float pixels (N, 3, H, W) in [0, 1], and adapt to them."""
        logits, views = self._teach(pixels)
        with runtime.explained_single_images():
            loss = -(logits.softmax(1) * self.model(pixels).log_softmax(1)).sum(1).mean()
        training.take_step(self.optimizer, loss)
        self._move_teacher_and_restore()
        self.passes.train += len(pixels)
        self.passes.forward += (1 + views) * len(pixels)
        return logits

    @torch.no_grad()
    def _teach(self, pixels: Tensor) -> tuple[Tensor, int]:
        """Return the teacher's logits (N, C), and over how many passes they were averaged."""
        with runtime.explained_single_images():
            if self.anchor(pixels).softmax(1).amax(1).mean().item() >= self.settings.confidence:
                return self.teacher(pixels), 1
            views = self.settings.views
            logits = torch.stack([self.teacher(self._view(pixels)) for _ in range(views)])
            return logits.mean(0), views

    def _view(self, pixels: Tensor) -> Tensor:
        return draw(self.generator)(pixels, self.generator)

    @torch.no_grad()
    def _move_teacher_and_restore(self) -> None:
        networks = (self.teacher, self.model, self.anchor)
        for slow, parameter, start in zip(*(network.parameters() for network in networks), strict=True):
            slow.mul_(self.settings.memory).add_(parameter, alpha=1 - self.settings.memory)
            drawn = torch.rand(parameter.shape, generator=self.generator).to(parameter.device)
            parameter.copy_(torch.where(drawn < self.settings.restored, start, parameter))

    def answer(self, pixels: Tensor) -> Tensor:
        """Return the teacher's logits (N, C), without adapting."""
        state = self.generator.get_state()
        logits = self._teach(pixels)[0]
        self.generator.set_state(state)
        return logits

    def reset(self) -> None:
        """Return student and teacher to the original weights, and forget optimizer and random numbers."""
        for network in (self.model, self.teacher):
            network.load_state_dict(self.anchor.state_dict())
        self._begin()
