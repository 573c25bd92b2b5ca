"""What ranks share in a training step: parts of a batch, gradients, and what layers compute over the whole batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from deeppatch import runtime
from deeppatch.distributed import ranks

# pixels and labels; what one rank alone computes may carry more, for its own loss
Batch = tuple[Tensor, ...]


class Stream(Protocol):
    """Batches with a known count."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...


@runtime_checkable
class Divisible(Protocol):
    """A stream that can be read in parts, so that no rank makes what belongs to others."""

    @property
    def sizes(self) -> Sequence[int]:
        """How many images each whole batch has."""

    def divided(self, which: int, of: int) -> Stream:
        """Return the same stream, of every batch part `which` (from 0) of `of`."""


def own_parts(batches: Stream) -> Iterator[tuple[Batch, float]]:
    """Yield this rank's part of each batch, and its share of the batch's images; with one rank, the batches and 1."""
    own, count = runtime.rank(), runtime.ranks()
    if count == 1:
        for batch in batches:
            yield batch, 1.0
    elif isinstance(batches, Divisible):
        for batch, size in zip(batches.divided(own, count), batches.sizes, strict=True):
            yield batch, len(batch[1]) / size
    else:
        for pixels, labels in batches:
            part = ranks.part_of(len(labels), own, count)
            yield (pixels[part], labels[part]), (part.stop - part.start) / len(labels)


def whole_batches(parts: list[Tensor]) -> Tensor:
    """Return what the ranks found on their parts of each batch, put together (M,) in the order of the images."""
    if runtime.ranks() == 1:
        return torch.cat(parts)
    gathered = ranks.all_gather([part.cpu() for part in parts])
    return torch.cat([part for batch in zip(*gathered, strict=True) for part in batch]).to(parts[0].device)


@contextmanager
def replicated(model: nn.Module) -> Iterator[nn.Module]:
    """Yield what to train in place of `model`: itself, or with several ranks a wrapper that averages their gradients.

    Within the block batch normalisation and dropout work over the whole batch, of which each rank has a part, so that
    training equals that of one process to rounding. The model's own modules and names stay as they are.
    """
    if runtime.ranks() == 1:
        yield model
        return
    device = next(model.parameters()).device
    changed = [module for module in model.modules() if type(module) in WHOLE]
    for module in changed:
        vars(module)["forward"] = WHOLE[type(module)](module)
    try:
        yield _wrapped(model, device)
    finally:
        for module in changed:
            del vars(module)["forward"]


def _wrapped(model: nn.Module, device: torch.device) -> nn.Module:
    with warnings.catch_warnings():  # torch 2.13 has another name for broadcast_buffers, which older ones do not know
        warnings.simplefilter("ignore", FutureWarning)
        devices = None if device.type == "cpu" else [device]
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def _norm(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    alone = partial(nn.BatchNorm2d.forward, norm)
    together = _norm_on_cpu(norm) if next(norm.buffers()).device.type == "cpu" else _norm_on_cuda(norm)

    def forward(x: Tensor) -> Tensor:
        return together(x) if norm.training else alone(x)

    return forward


def _norm_on_cuda(norm: nn.BatchNorm2d) -> nn.Module:
    """Return torch's own synchronised normalisation, which has no CPU form, with the tensors of `norm`."""
    twin = nn.SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, value in {**norm._parameters, **norm._buffers}.items():
        setattr(twin, name, value)
    return twin.train()


def _norm_on_cpu(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        mean, variance, count = batch_statistics(_precise(x.detach()))
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum  # type: ignore[arg-type]
            norm.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
            norm.running_var.lerp_(variance * (count / (count - 1)), momentum)  # type: ignore[union-attr]
        return _WholeBatchNorm.apply(x, norm.weight, norm.bias, mean, variance, count, norm.eps)

    return forward


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return mean (C,), variance (C,) and the number of values a channel over all ranks' maps (N, C, H, W).

    Means and sums of squares of the parts are joined as Chan, Golub and LeVeque do (1983), without cancellation.
    """
    count = x.numel() // x.shape[1]
    own = x.new_zeros(3, x.shape[1])
    if count:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        own = torch.stack([mean, variance * count, torch.full_like(mean, count)])
    means, squares, counts = ranks.all_gather_stack(own).unbind(1)
    number = counts.sum(0)
    mean = (counts * means).sum(0) / number
    squares = squares.sum(0) + (counts * (means - mean).square()).sum(0)
    return mean, squares / number, number[0].item()


def _precise(maps: Tensor) -> Tensor:
    return maps.float() if maps.dtype == torch.bfloat16 else maps


class _WholeBatchNorm(torch.autograd.Function):
    """Normalise a part of a batch by the whole batch's statistics, of which the gradient knows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: float, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.count, ctx.eps = count, eps
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        gradient = _precise(gradients[0])
        normal = F.batch_norm(_precise(x), mean, variance, eps=ctx.eps)
        own = torch.stack([gradient.sum((0, 2, 3)), (gradient * normal).sum((0, 2, 3))])
        # weight and bias get this rank's sums, because the wrapper averages over ranks; the maps need those of all
        mean_gradient, slope = (ranks.all_reduce_sum(own) / ctx.count).view(2, 1, -1, 1, 1)
        scale = (weight * torch.rsqrt(variance + ctx.eps)).view(1, -1, 1, 1)
        to_maps = (gradient - mean_gradient - normal * slope) * scale
        return to_maps.to(x.dtype), own[1], own[0], None, None, None, None


def _dropout(dropout: nn.Dropout) -> Callable[[Tensor], Tensor]:
    """Return dropout that draws for the whole batch on every rank, as one process would, and uses its own part."""

    def forward(x: Tensor) -> Tensor:
        if not dropout.training:
            return x
        sizes = ranks.all_gather(len(x))
        start = sum(sizes[: runtime.rank()])
        kept = F.dropout(x.new_ones((sum(sizes), *x.shape[1:])), dropout.p)
        return x * kept[start : start + len(x)]

    return forward


WHOLE: dict[type[nn.Module], Callable[[Any], Callable[[Tensor], Tensor]]] = {
    nn.BatchNorm2d: _norm, nn.Dropout: _dropout,
}  # fmt: skip
