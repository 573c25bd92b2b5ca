"""Data-parallel training: shards of batches, averaged gradients, and layers that compute over the whole batch."""

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

# pixels and labels; batches for a single rank may have further tensors, for their loss
Batch = tuple[Tensor, ...]


class Stream(Protocol):
    """Batches with a known count."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...


@runtime_checkable
class Shardable(Protocol):
    """A stream of which each rank can read only its own shard of each batch."""

    @property
    def sizes(self) -> Sequence[int]:
        """The total of images in each whole batch."""

    def shard(self, index: int, count: int) -> Stream:
        """Return the stream of shard `index` (from 0) of `count` shards of each batch."""


def own_shards(batches: Stream) -> Iterator[tuple[Batch, float]]:
    """Yield this rank's shard of each batch, and its share of the images; with one rank, whole batches and 1."""
    own, count = runtime.rank(), runtime.ranks()
    if count == 1:
        for batch in batches:
            yield batch, 1.0
    elif isinstance(batches, Shardable):
        for batch, size in zip(batches.shard(own, count), batches.sizes, strict=True):
            yield batch, len(batch[1]) / size
    else:
        for pixels, labels in batches:
            part = ranks.shard_slice(len(labels), own, count)
            yield (pixels[part], labels[part]), (part.stop - part.start) / len(labels)


def gather_batches(parts: list[Tensor]) -> Tensor:
    """Concatenate the results of all ranks on their shards of each batch, (M,) in the order of the images."""
    if runtime.ranks() == 1:
        return torch.cat(parts)
    gathered = ranks.all_gather([part.cpu() for part in parts])
    return torch.cat([part for batch in zip(*gathered, strict=True) for part in batch]).to(parts[0].device)


@contextmanager
def replicated(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the module to train: `model` itself, or with several ranks a wrapper that averages their gradients.

    Within the block batch normalisation and dropout work over the whole batch, of which each rank has a shard, so that
    training equals that of one process up to rounding. The model's own modules and names do not change.
    """
    if runtime.ranks() == 1:
        yield model
        return
    device = next(model.parameters()).device
    changed = [module for module in model.modules() if type(module) in WHOLE_BATCH_FORWARDS]
    for module in changed:
        vars(module)["forward"] = WHOLE_BATCH_FORWARDS[type(module)](module)
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
    unsynchronised = partial(nn.BatchNorm2d.forward, norm)
    synchronised = _norm_on_cpu(norm) if next(norm.buffers()).device.type == "cpu" else _norm_on_cuda(norm)

    def forward(x: Tensor) -> Tensor:
        return synchronised(x) if norm.training else unsynchronised(x)

    return forward


def _norm_on_cuda(norm: nn.BatchNorm2d) -> nn.Module:
    """Return torch's synchronised batch normalisation, which does not support the CPU, with the tensors of `norm`."""
    synchronised = nn.SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, value in {**norm._parameters, **norm._buffers}.items():
        setattr(synchronised, name, value)
    return synchronised.train()


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
    """Return mean (C,), variance (C,) and the number of values per channel over the maps (N, C, H, W) of all ranks.

    Means and sums of squares are combined as by Chan, Golub and LeVeque (1983), without cancellation.
    """
    count = x.numel() // x.shape[1]
    own = x.new_zeros(3, x.shape[1])
    if count:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        own = torch.stack([mean, variance * count, torch.full_like(mean, count)])
    means, squares, counts = ranks.all_gather_stack(own).unbind(1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    squares = squares.sum(0) + (counts * (means - mean).square()).sum(0)
    return mean, squares / total, total[0].item()


def _precise(maps: Tensor) -> Tensor:
    return maps.float() if maps.dtype == torch.bfloat16 else maps


class _WholeBatchNorm(torch.autograd.Function):
    """Normalise a shard by the statistics of the whole batch, with the gradient through these statistics."""

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
        # weight and bias get the sums of this rank, because the wrapper averages over ranks; the maps need those of all
        mean_gradient, slope = (ranks.all_reduce_sum(own) / ctx.count).view(2, 1, -1, 1, 1)
        scale = (weight * torch.rsqrt(variance + ctx.eps)).view(1, -1, 1, 1)
        to_maps = (gradient - mean_gradient - normal * slope) * scale
        return to_maps.to(x.dtype), own[1], own[0], None, None, None, None


def _dropout(dropout: nn.Dropout) -> Callable[[Tensor], Tensor]:
    """Return dropout that draws the mask of the whole batch on every rank and applies its own part of it."""

    def forward(x: Tensor) -> Tensor:
        if not dropout.training:
            return x
        sizes = ranks.all_gather(len(x))
        start = sum(sizes[: runtime.rank()])
        mask = F.dropout(x.new_ones((sum(sizes), *x.shape[1:])), dropout.p)
        return x * mask[start : start + len(x)]

    return forward


WHOLE_BATCH_FORWARDS: dict[type[nn.Module], Callable[[Any], Callable[[Tensor], Tensor]]] = {
    nn.BatchNorm2d: _norm, nn.Dropout: _dropout,
}  # fmt: skip
