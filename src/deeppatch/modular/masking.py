"""Compute the logits of modules: by masking channels of the whole network, or by running the smaller networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.graph.hooks import hooked_before
from deeppatch.modular.extract import sliced
from deeppatch.modular.layers import Layer
from deeppatch.progress import track

MAX_CONCURRENT_IMAGES = 1024  # images that all threads together process at a time, to limit memory


@contextmanager
def masked(network: nn.Module, layers: Sequence[Layer], masks: Sequence[Tensor]) -> Iterator[None]:
    """Mask the inputs of every layer's readers within the block; `masks` has (P, kernels) in {0, 1} by layer.

    The network reads P blocks of equally many samples, one for each row of the masks. Channels stay separate between
    a layer's convolutions and its readers, so masking equals removing the other kernels.
    """

    def hook(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
        def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
            x = inputs[0]
            wide = mask.to(x.dtype).repeat_interleave(len(x) // len(mask), 0)
            return x * wide.view(*wide.shape, *[1] * (x.ndim - 2))

        return before

    with ExitStack() as stack:
        for name, wide in _masks_of_inputs(network, layers, masks).items():
            stack.enter_context(hooked_before(network.get_submodule(name), hook(wide)))
        yield


def _masks_of_inputs(network: nn.Module, layers: Sequence[Layer], masks: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return for each reader the mask (P, inputs) of all its inputs: 1 for those that are of no layer."""
    read: dict[str, list[tuple[int, Tensor]]] = {}
    for layer, mask in zip(layers, masks, strict=True):
        for name, inputs in layer.readers.items():
            read.setdefault(name, []).append((layer.span(name).start, mask.repeat_interleave(inputs, 1)))
    wide: dict[str, Tensor] = {}
    for name, parts in read.items():
        weight = network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        pieces, end = [], 0
        for start, mask in sorted(parts, key=lambda part: part[0]):
            pieces += [mask.new_ones(len(mask), start - end), mask]
            end = start + mask.shape[1]
        pieces.append(pieces[-1].new_ones(len(pieces[-1]), weight.shape[1] - end))
        pieces = [piece for piece in pieces if piece.shape[1]]
        wide[name] = torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0]
    return wide


def masked_logits(network: nn.Module, layers: Sequence[Layer], masks: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return the logits (P, N, classes) of P modules for inputs (N, C, H, W), differentiable in the masks."""
    with masked(network, layers, masks):
        logits: Tensor = network(x.repeat(len(masks[0]), 1, 1, 1))
    return logits.unflatten(0, (-1, len(x)))


def sliced_logits(
    network: nn.Module,
    layers: Sequence[Layer],
    masks: Sequence[Tensor],
    x: Tensor,
    batch_size: int = 256,
    replicas: Sequence[nn.Module] = (),
    label: str = "candidates",
) -> Tensor:
    """Return the logits (P, N, classes) of P modules, each run as the smaller network that it is.

    With `replicas` of the network, modules run in parallel on a CPU, each on one thread. Progress goes by `label`.
    """
    batch_size = min(batch_size, max(64, MAX_CONCURRENT_IMAGES // (1 + len(replicas))))

    def run(kept: Sequence[Tensor]) -> Tensor:
        replica = idle.get()
        try:
            with torch.inference_mode(), sliced(replica, layers, kept):
                return torch.cat([replica(part) for part in x.split(batch_size)])
        finally:
            idle.put(replica)

    modules = list(zip(*masks, strict=True))
    idle: SimpleQueue[nn.Module] = SimpleQueue()
    for replica in (network, *replicas):
        idle.put(replica)
    if not replicas or len(modules) == 1:
        return torch.stack([run(kept) for kept in track(modules, len(modules), label)])
    with runtime.single_threaded_workers(1 + len(replicas)) as pool:
        return torch.stack(list(track(pool.map(run, modules), len(modules), label)))


def replicas_of(network: nn.Module) -> list[nn.Module]:
    """Return copies of a network that share its parameters: one less than there are threads, none off the CPU."""
    shared = [*network.parameters(), *network.buffers()]
    if any(tensor.device.type != "cpu" for tensor in shared):
        return []
    return [
        copy.deepcopy(network, {id(tensor): tensor for tensor in shared}) for _ in range(torch.get_num_threads() - 1)
    ]
