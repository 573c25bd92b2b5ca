"""Communication between the processes of a run; with one process, functions return their own value."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from deeppatch import runtime
from deeppatch.runtime import rank, ranks

Value = TypeVar("Value")


def join() -> dist.Store:
    """Join the other processes that torchrun started, and return a store that all of them see."""
    store, own, count = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if runtime.default_device() == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=own, world_size=count)
    # a separate connection, because that of the process group blocks during collectives
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))


def leave() -> None:
    """Leave the group of ranks."""
    dist.destroy_process_group()


def is_lost_rank(error: RuntimeError) -> bool:
    """Return whether a collective failed because another rank has ended."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(name in text for name in ("gloo", "nccl", "closed by peer"))


def shard_slice(size: int, index: int, count: int) -> slice:
    """Return the slice of shard `index` (from 0) when `size` items are split into `count` nearly equal shards."""
    return slice(size * index // count, size * (index + 1) // count)


def broadcast_from_rank0(call: Callable[[], Value]) -> Value:
    """Call a function on rank 0 only, and return its result on every rank."""
    if ranks() == 1:
        return call()
    result = [call() if rank() == 0 else None]
    dist.broadcast_object_list(result)
    return result[0]  # type: ignore[return-value]


def on_local_rank0_first(call: Callable[[], Value]) -> Value:
    """Call a function on one rank of each machine before the others, because it may download files."""
    if ranks() == 1:
        return call()
    first = os.environ["LOCAL_RANK"] == "0"
    result = call() if first else None
    barrier()
    return result if first else call()  # type: ignore[return-value]


def all_gather(value: Value) -> list[Value]:
    """Return every rank's `value`, in the order of ranks, on every rank; tensors must be on the CPU."""
    if ranks() == 1:
        return [value]
    found: list[Any] = [None] * ranks()
    dist.all_gather_object(found, value)
    return found


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, on every rank."""
    if ranks() == 1:
        return tensor
    summed = tensor.clone()
    dist.all_reduce(summed)
    return summed


def all_gather_stack(tensor: Tensor) -> Tensor:
    """Return every rank's tensor, all of one shape, stacked along a new first axis."""
    found = [torch.empty_like(tensor) for _ in range(ranks())]
    if ranks() == 1:
        return tensor.unsqueeze(0)
    dist.all_gather(found, tensor)
    return torch.stack(found)


def barrier() -> None:
    """Wait until all ranks have called this function."""
    all_gather(None)


def distribute_by_cost(
    filters: Mapping[str, Sequence[int]], costs: Mapping[str, int], parts: int
) -> list[dict[str, list[int]]]:
    """Distribute filters over parts of nearly equal cost.

    Filters are assigned in order of decreasing cost, each to the part of the lowest total so far (longest processing
    time first: the highest total is at most 4/3 of the optimum).

    Args:
        filters: The channels of each layer.
        costs: The cost of a filter of each layer.
        parts: The number of parts.

    Returns:
        The filters of each part, layers and channels in their original order; layers without a filter are left out.
    """
    assigned: list[dict[str, set[int]]] = [{} for _ in range(parts)]
    loads = [0] * parts
    for name in sorted(filters, key=lambda layer: -costs[layer]):  # stable: as ordered where costs are equal
        for channel in filters[name]:
            lightest = loads.index(min(loads))
            assigned[lightest].setdefault(name, set()).add(channel)
            loads[lightest] += costs[name]
    return [
        {name: [c for c in row if c in part[name]] for name, row in filters.items() if name in part}
        for part in assigned
    ]
