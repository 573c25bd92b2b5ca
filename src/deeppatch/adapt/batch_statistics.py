"""Statistics of the test batch in batch normalisations: in place of the source statistics, or mixed with them."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.adapt.adapter import Adapter, needed_batch_norms, use_batch_statistics
from deeppatch.data.corruptions import Corruption
from deeppatch.data.images import Images
from deeppatch.data.streams import stream
from deeppatch.errors import UserError
from deeppatch.graph.hooks import hooked_before
from deeppatch.progress import track
from deeppatch.zoo.classifier import device_of

PRIOR_COUNTS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class BatchStatisticsSettings:
    """There is nothing to set."""


@dataclass(frozen=True)
class BnAlphaSettings:
    """The share of the batch statistics, from 0 to 1; 0.1 was published for batches of one image."""

    share: float = 0.1


@dataclass(frozen=True)
class BnPriorSettings:
    """The number of images that the source statistics count for; choose it by `choose_prior_count`."""

    count: int = 16


class BatchStatistics(Adapter):
    """Normalise by mean and biased variance of the current batch (BN-1).

    Z. Nado et al., Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift,
    arXiv 2006.10963.
    """

    def __init__(self, model: nn.Module, settings: BatchStatisticsSettings | None = None) -> None:
        super().__init__(model)
        needed_batch_norms(self.model, "bn-1")
        use_batch_statistics(self.model)

    def predict(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) of float pixels (N, 3, H, W) in [0, 1]."""
        self.passes.forward += len(pixels)
        return self.answer(pixels)

    @torch.no_grad()
    def answer(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C)."""
        with runtime.explained_single_images():
            return self.model(pixels)


class MixedStatistics(Adapter):
    """Normalise by a mixture of source and batch statistics: (1 - a) source + a batch, for mean and biased variance."""

    method = ""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        needed_batch_norms(self.model, self.method)

    @abstractmethod
    def share(self, images: int) -> float:
        """Return a, the share in [0, 1] of the statistics of a batch of `images`."""

    def predict(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C) of float pixels (N, 3, H, W) in [0, 1]."""
        self.passes.forward += len(pixels)
        return self.answer(pixels)

    @torch.no_grad()
    def answer(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C)."""
        share = self.share(len(pixels))
        sources: dict[nn.Module, tuple[Any, Any]] = {}

        def mix(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            mean, variance = sources.setdefault(norm, (norm.running_mean, norm.running_var))
            entering = inputs[0].float()
            of_batch = torch.var_mean(entering, [0, *range(2, entering.ndim)], correction=0)
            norm.running_var, norm.running_mean = (
                source.lerp(found, share) for source, found in zip((variance, mean), of_batch, strict=True)
            )

        with ExitStack() as stack:
            for norm in needed_batch_norms(self.model, self.method).values():
                if norm.running_mean is not None:  # else it always uses the statistics of the batch
                    stack.enter_context(hooked_before(norm, mix))
            try:
                return self.model(pixels)
            finally:
                for norm, (mean, variance) in sources.items():
                    norm.running_mean, norm.running_var = mean, variance


class BnAlpha(MixedStatistics):
    """Mix in a fixed share of the batch statistics.

    S. Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS 2020,
    arXiv 2006.16971, equation 2; the published code takes the unbiased variance of the batch, this one the biased.
    """

    method = "bn-alpha"

    def __init__(self, model: nn.Module, settings: BnAlphaSettings | None = None) -> None:
        super().__init__(model)
        self.settings = settings or BnAlphaSettings()
        if not 0 <= self.settings.share <= 1:
            raise UserError(f"bn-alpha: share={self.settings.share}: give a number from 0 to 1")

    def share(self, images: int) -> float:
        """Return the share of the batch statistics."""
        return self.settings.share


class BnPrior(MixedStatistics):
    """Mix by the number of images: the share of the batch of n images is n / (n + N), N a prior count.

    S. Schneider et al., NeurIPS 2020, arXiv 2006.16971, equation 2.
    """

    method = "bn-prior"

    def __init__(self, model: nn.Module, settings: BnPriorSettings | None = None) -> None:
        super().__init__(model)
        self.settings = settings or BnPriorSettings()
        if self.settings.count < 0:
            raise UserError(f"bn-prior: count={self.settings.count}: give a number of images, 0 or more")

    def share(self, images: int) -> float:
        """Return n / (n + N)."""
        return images / (images + self.settings.count)


@torch.no_grad()
def choose_prior_count(
    model: nn.Module, val: Images, corruption: Corruption, *, batch_size: int = 200, seed: int = 2021
) -> int:
    """Return the prior count of `BnPrior` that classifies most degraded images of val, of 8, 16, .. 512.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        val: Labelled images that no result is measured on. They are moved to the model's device.
        corruption: The degradation; its stream `reset` is classified with each prior count.
        batch_size: The number of images in a batch.
        seed: The seed of the order.
    """
    adapters = [BnPrior(model, BnPriorSettings(count)) for count in PRIOR_COUNTS]
    correct = torch.zeros(len(adapters))
    parts = stream("reset", val.to(device_of(model)), corruption, batch_size=batch_size, seed=seed).parts
    batches = (batch for part in parts for batch in part)
    for pixels, labels in track(batches, sum(map(len, parts)), "choosing a prior count"):
        for number, adapter in enumerate(adapters):
            correct[number] += float((adapter.predict(pixels).argmax(1) == labels).sum())
    return PRIOR_COUNTS[int(correct.argmax())]
