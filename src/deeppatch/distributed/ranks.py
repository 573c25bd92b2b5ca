"""What the processes of a run exchange; with one process each function returns what it was given."""

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
    # a connection of its own, which answers while collectives wait on theirs
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))


def leave() -> None:
    """Leave the group of ranks."""
    dist.destroy_process_group()


def is_lost_rank(error: RuntimeError) -> bool:
    """Tell whether a collective failed, as it does when another rank has ended."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(name in text for name in ("gloo", "nccl", "closed by peer"))


def part_of(count: int, which: int, of: int) -> slice:
    """Return the part number `which` (from 0) of `of` nearly equal ones of `count` items; it may be empty."""
    return slice(count * which // of, count * (which + 1) // of)


def broadcast_from_rank0(call: Callable[[], Value]) -> Value:
    """Return what `call` returns on rank 0, on every rank; it is called only there."""
    if ranks() == 1:
        return call()
    found = [call() if rank() == 0 else None]
    dist.broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def on_local_rank0_first(call: Callable[[], Value]) -> Value:
    """Return what `call` returns; on each machine one rank calls it before the others, because it may download."""
    if ranks() == 1:
        return call()
    first = os.environ["LOCAL_RANK"] == "0"
    found = call() if first else None
    barrier()
    return found if first else call()  # type: ignore[return-value]


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
    """Wait until every rank is here."""
    all_gather(None)


def share_out(filters: Mapping[str, Sequence[int]], costs: Mapping[str, int], parts: int) -> list[dict[str, list[int]]]:
    """Share filters (channels by layer) out in `parts` of nearly equal cost; `costs` says what one of a layer takes.

    The dearest filters are dealt first, each to the part that has least (longest processing time first: no part has
    more than 4/3 of what the best sharing gives the fullest). It depends on nothing but its arguments. In each part
    layers and channels keep their order, and a layer of which it has nothing is left out.
    """
    dealt: list[dict[str, set[int]]] = [{} for _ in range(parts)]
    loads = [0] * parts
    for name in sorted(filters, key=lambda layer: -costs[layer]):  # stable: as ordered where costs are equal
        for channel in filters[name]:
            least = loads.index(min(loads))
            dealt[least].setdefault(name, set()).add(channel)
            loads[least] += costs[name]
    return [
        {name: [c for c in row if c in part[name]] for name, row in filters.items() if name in part} for part in dealt
    ]
