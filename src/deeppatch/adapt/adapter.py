"""What all methods of test-time adaptation share: a copy of the network, batch statistics, and counted passes."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeppatch import runtime, training
from deeppatch.errors import UserError

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass
class Passes:
    """The number of passes of one image: forward only, and forward and backward."""

    forward: int = 0
    train: int = 0


class Adapter(ABC):
    """A classifier that adapts to the unlabelled images that it classifies; the model given is not changed.

    `passes` counts the passes of the images given to `predict`, and `resets` how often the method itself returned to
    the original weights. `depends_on_neighbours` says whether the answer for an image depends on the other images of
    its batch, `depends_on_past` whether it depends on earlier batches. Batches have at least `smallest_batch` images.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1].
    """

    depends_on_past = False
    smallest_batch = 1

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.passes = Passes()
        self.resets = 0

    @property
    def depends_on_neighbours(self) -> bool:
        """Whether the answer for an image depends on the other images of its batch."""
        return bool(batch_norms(self.model))

    @abstractmethod
    def predict(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) of float pixels (N, 3, H, W) in [0, 1], and adapt to them."""

    @abstractmethod
    def answer(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) as the method now is, without adapting, and without counting passes."""

    def reset(self) -> None:  # noqa: B027  many methods have nothing to forget
        """Return to the original weights, and forget all earlier batches; counts are kept."""

    def checked(self, pixels: Tensor) -> Tensor:
        """Return pixels; UserError where the method is not defined for so few images."""
        if len(pixels) < self.smallest_batch:
            raise UserError(
                f"{type(self).__name__} is not defined for a batch of {len(pixels)} image: it compares the images of a "
                f"batch; give batches of at least {self.smallest_batch}"
            )
        return pixels


class TrainedNorms(Adapter):
    """An adapter that trains scale and shift of all normalisation layers, over the statistics of each batch.

    Subclasses implement `predict`, which steps by `step`.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1].
        left_out: Layers of which a part of the name is one of these are not trained.

    Raises:
        UserError: When the network has no normalisation layer with scale and shift.
    """

    depends_on_past = True

    def __init__(self, model: nn.Module, left_out: Sequence[str] = ()) -> None:
        super().__init__(model)
        use_batch_statistics(self.model)
        self.parameters = norm_parameters(self.model, left_out)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.start = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = self.new_optimizer()

    @abstractmethod
    def new_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the parameters, in its initial state."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) from which gradients can be computed."""
        with torch.enable_grad(), runtime.explained_single_images():
            return self.model(pixels)

    @torch.no_grad()
    def answer(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) as the method now is, without adapting."""
        with runtime.explained_single_images():
            return self.model(pixels)

    def step(self, loss: Tensor | Sequence[Tensor | None]) -> None:
        """Take one step of the optimizer; `loss` is what `training.take_step` takes."""
        training.take_step(self.optimizer, loss)

    @torch.no_grad()
    def reset(self) -> None:
        """Return to the original scales and shifts, and forget the state of the optimizer."""
        for parameter, start in zip(self.parameters, self.start, strict=True):
            parameter.copy_(start)
        self.optimizer = self.new_optimizer()


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the batch normalisations of a network by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def needed_batch_norms(model: nn.Module, method: str) -> dict[str, nn.Module]:
    """Return the batch normalisations of a network by name; UserError where it has none."""
    found = batch_norms(model)
    if not found:
        raise UserError(
            f"{method} replaces the statistics of batch normalisations, and this network has none (or they are folded "
            "into its convolutions); choose another method, or give the network before it was folded"
        )
    return found


def use_batch_statistics(model: nn.Module) -> None:
    """Let every batch normalisation use mean and biased variance of the current batch, in place, in eval mode too."""
    for module in batch_norms(model).values():
        module.track_running_stats = False  # type: ignore[assignment]
        module.running_mean = module.running_var = module.num_batches_tracked = None  # type: ignore[assignment]


def norm_parameters(model: nn.Module, left_out: Sequence[str] = ()) -> list[nn.Parameter]:
    """Return scale and shift of all normalisation layers, except those of which a part of the name is left out."""
    found = [
        parameter
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and not set(name.split(".")) & set(left_out)
        for parameter in module.parameters(recurse=False)
    ]
    if not found:
        raise UserError(
            "this network has no normalisation layer with a scale and a shift to train (or it is folded into a "
            "convolution); choose another method, or give the network before it was folded"
        )
    return found


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy (N,) in nats of the softmax of logits (N, C).

    >>> entropy(torch.zeros(1, 4)).exp()
    tensor([4.])
    """
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
