"""Semi-supervised training that cannot collapse: an averaged teacher, aligned and confident pseudo-labels, weight 1."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.artifacts import load_states, states_of
from deeppatch.data import augmix, views
from deeppatch.data.images import Images
from deeppatch.distributed.data_parallel import Batch
from deeppatch.errors import UserError, check_between, check_counts
from deeppatch.hybrid.confidence import PseudoLabelling
from deeppatch.hybrid.names import WEIGHTINGS
from deeppatch.hybrid.training_data import shuffled_batches
from deeppatch.progress import info
from deeppatch.runtime import autocast

# pseudo-labels are given up where a class has less than this share of its prior, for so many epochs in a row
LEAST_SHARE, PATIENCE = 0.1, 2


@dataclass(frozen=True)
class SafeRecipe:
    """The constants of the safe recipe.

    Args:
        ratio: The number of unlabelled images per labelled one in a batch.
        bought_share: The share of bought images among the labelled ones of a batch, at least.
        weight: The weight of the loss on pseudo-labels.
        momentum: The largest share of the averaged network, and of running statistics, that remains at each step; in
            shorter trainings averages are over a tenth of all steps.
        weighting: One of WEIGHTINGS.
        measured_start: Whether running statistics begin with those of the starting network, instead of 1 / C.
    """

    ratio: int = 3
    bought_share: float = 0.25
    weight: float = 1.0
    momentum: float = 0.999
    weighting: str = "threshold"
    measured_start: bool = True

    def __post_init__(self) -> None:
        """Raise UserError when a number is out of range, or the weighting is unknown."""
        check_counts(ratio=self.ratio)
        check_between(0, 1, bought_share=self.bought_share, momentum=self.momentum)
        check_between(0, math.inf, weight=self.weight)
        if self.weighting not in WEIGHTINGS:
            raise UserError(f"weighting={self.weighting!r} is unknown; choose from {', '.join(WEIGHTINGS)}")

    def momentum_for(self, steps: int) -> float:
        """Return the share that remains at each of `steps` steps.

        >>> SafeRecipe().momentum_for(1000), SafeRecipe().momentum_for(50_000)
        (0.99, 0.999)
        """
        return min(self.momentum, 1 - 1 / max(1.0, steps / 10))


@dataclass(frozen=True)
class SafeData:
    """What the safe recipe learns from.

    Args:
        replay: The training images, which are replayed.
        bought: The images of the pool with labels; there may be none.
        pool: The pixels of the pool, uint8 (N, 3, H, W).
        index: The indices (U,) of the images that are learnt from without labels; there may be none.
        prior: The class prior that predictions are to have, (C,).
        crop: Whether images are cropped.
        mirror: Whether cropped images are mirrored.
    """

    replay: Images
    bought: Images
    pool: Tensor
    index: Tensor
    prior: Tensor
    crop: bool = False
    mirror: bool = False

    def labelled_sizes(self, batch: int, recipe: SafeRecipe) -> tuple[int, int]:
        """Return how many replayed and bought images a batch has."""
        natural = batch * len(self.bought) / (len(self.replay) + len(self.bought))
        bought = round(max(natural, recipe.bought_share * batch)) if len(self.bought) else 0
        bought = min(bought, batch - 1, len(self.bought))
        return min(batch - bought, len(self.replay)), bought

    def class_shares(self, sizes: tuple[int, int]) -> Tensor:
        """Return the class shares (C,) of labelled images in batches of these sizes, with one image more of each."""
        classes = len(self.prior)
        counts = torch.zeros(classes, dtype=torch.float64, device=self.prior.device)
        for images, size in zip((self.replay, self.bought), sizes, strict=True):
            if size:
                counts += size / len(images) * images.labels.bincount(minlength=classes)
        counts += sum(sizes) / (len(self.replay) + len(self.bought))
        return counts / counts.sum()


@dataclass
class SafeState:
    """The state of a safe training: the student that `fit` trains, and what is carried from epoch to epoch.

    `judge` returns what is known of pseudo-labels from their indices in the pool and their classes: diagnostics of a
    simulated pool.
    """

    student: nn.Module
    data: SafeData
    recipe: SafeRecipe
    labelling: PseudoLabelling
    momentum: float
    seed: int
    amp: bool = False
    judge: Callable[[Tensor, Tensor], dict[str, float]] | None = None
    teacher: nn.Module = field(init=False)
    stopped: bool = field(default=False, init=False)
    watched: dict[str, Any] = field(default_factory=dict, init=False)
    _low_epochs: int = field(default=0, init=False)
    _seen: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)

    @torch.no_grad()
    def average(self) -> None:
        """Move the teacher towards the student, as the moving average of its parameters and buffers."""
        averaged, current = self.teacher.state_dict(), self.student.state_dict()
        floats = [name for name, value in averaged.items() if value.is_floating_point()]
        torch._foreach_lerp_([averaged[name] for name in floats], [current[name] for name in floats], 1 - self.momentum)
        for name in averaged.keys() - set(floats):
            averaged[name].copy_(current[name])

    @torch.no_grad()
    def pseudo_labels(self, pixels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels (m,) and weights (m,) from the teacher's predictions for weak views (m, 3, H, W)."""
        with autocast(pixels.device, self.amp):
            predictions = self.teacher(pixels).float().softmax(1)
        labels, weights = self.labelling.label(predictions)
        self._seen.append((index, labels, weights))
        return labels, weights

    def end_epoch(self) -> None:
        """Sum up the pseudo-labels of an epoch, and give them up where a class has vanished for two epochs."""
        self.watched = {}
        if not self._seen:
            return
        index, labels, weights = (torch.cat(each) for each in zip(*self._seen, strict=True))
        self._seen = []
        counted = weights > 0.5
        histogram = labels[counted].bincount(minlength=len(self.data.prior)).double()
        shares = histogram / histogram.sum().clamp(min=1)
        least = float((shares / self.data.prior.double().to(shares.device).clamp(min=1e-12)).min())
        self.watched = {
            "confident_percent": 100 * counted.double().mean().item(),
            "pseudo_label_entropy": torch.special.entr(shares).sum().item(),
            "least_class_share": least,
        }
        if self.judge is not None and bool(counted.any()):
            self.watched |= self.judge(index[counted], labels[counted])
        self._low_epochs = self._low_epochs + 1 if least < LEAST_SHARE else 0
        if self._low_epochs == PATIENCE:
            self.stopped = True
            info(
                f"pseudo-labels are given up: for {PATIENCE} epochs a class had less than a tenth of its share of the "
                "pool among them; training goes on with labels"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what is carried from epoch to epoch beside the student."""
        parts = states_of({"teacher": self.teacher, "labelling": self.labelling})
        return {**parts, "stopped": self.stopped, "low_epochs": self._low_epochs, "watched": self.watched}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` returned."""
        load_states({"teacher": self.teacher, "labelling": self.labelling}, state)
        self.stopped, self._low_epochs, self.watched = state["stopped"], state["low_epochs"], state["watched"]


@dataclass(frozen=True)
class SafeEpoch:
    """The batches (pixels, labels, weights; see `safe_loss`) of one epoch; the teacher follows each step.

    Labelled images come first, each in a weak view; then images of the pool, each in a strong view with the label that
    the teacher gives its weak view.
    """

    state: SafeState
    epoch: int
    batch: int
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        state, data = self.state, self.state.data
        generator = runtime.generator(state.seed, "safe", self.epoch)
        use_pool = len(data.index) > 0 and not state.stopped
        size = self.batch * state.recipe.ratio
        order = shuffled_batches(len(data.index), size, self.steps, generator) if use_pool else None
        for step, (pixels, labels) in enumerate(self._labelled(generator)):
            weights = torch.zeros(2, len(labels), device=pixels.device)
            weights[0] = 1 / len(labels)
            if order is None:
                yield pixels, labels, weights
            else:
                drawn = data.index[order[step].to(pixels.device)]
                strong, guessed, counts = self._unlabelled(drawn, generator)
                unlabelled = torch.stack([torch.zeros_like(counts), state.recipe.weight * counts / len(counts)])
                weights = torch.cat([weights, unlabelled], 1)
                yield torch.cat([pixels, strong]), torch.cat([labels, guessed]), weights
            state.average()  # the step on this batch is done
        state.end_epoch()

    def _labelled(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        data = self.state.data
        parts = [
            (images, shuffled_batches(len(images), size, self.steps, generator).to(images.labels.device))
            for images, size in zip((data.replay, data.bought), self.sizes, strict=True)
            if size
        ]
        for step in range(self.steps):
            taken = [images.take(order[step]) for images, order in parts]
            pixels = torch.cat([each.pixels for each in taken])  # type: ignore[misc]
            yield views.to_float(self._weak(pixels, generator)), torch.cat([each.labels for each in taken])

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """The number of replayed and of bought images in a batch."""
        return self.state.data.labelled_sizes(self.batch, self.state.recipe)

    def _weak(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        if not self.state.data.crop:
            return pixels
        crops = views.random_crops(len(pixels), pixels.shape[-2], generator, mirror=self.state.data.mirror)
        return views.crop_and_flip(pixels, crops.to(pixels.device))

    def _unlabelled(self, drawn: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return strong views, labels and weights of images of the pool."""
        pixels = self.state.data.pool[drawn]
        weak, other = self._weak(pixels, generator), self._weak(pixels, generator)
        strong = augmix.views(other, 1, generator)[:, 1]
        return strong, *self.state.pseudo_labels(views.to_float(weak), drawn)


def safe_loss(adjustment: Tensor) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the loss of batches of `SafeEpoch`: weighted cross entropies, adjusted where an image is labelled.

    To logits of labelled images log pi - log q is added, where pi are the class shares of what is trained on and q the
    prior that predictions are to have, so that the network itself predicts for the prior q. With a uniform q this is
    the logit-adjusted loss of Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 10.

    Args:
        adjustment: log pi - log q, (C,).
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        pixels, labels, weights = batch
        logits = model(pixels).float() + adjustment * (weights[0] > 0).unsqueeze(1)
        return (weights.sum(0) * F.cross_entropy(logits, labels, reduction="none")).sum()

    return loss


def logit_adjustment(shares: Tensor, prior: Tensor) -> Tensor:
    """Return log pi - log q as float32 (C,) for class shares pi and a prior q, both (C,) and above 0."""
    return (shares.double().log() - prior.double().clamp(min=1e-6).log()).float()
