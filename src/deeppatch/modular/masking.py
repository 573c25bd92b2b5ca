"""What modules answer: the whole network with masks on its channels, or the smaller networks themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from deeppatch.modular.extract import sliced
from deeppatch.modular.layers import Layer
from deeppatch.progress import track
from deeppatch.surgery import hooked_before


@contextmanager
def masked(network: nn.Module, layers: Sequence[Layer], masks: Sequence[Tensor]) -> Iterator[None]:
    """Let every layer's readers see what is kept, within the block: `masks` has (P, kernels) in {0, 1} by layer.

    The network reads P blocks of as many samples each, one for each row of the masks. Between a layer's convolutions
    and its readers channels stay apart, so that this is what happens where the other kernels are gone.
    """

    def hook(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
        def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
            x = inputs[0]
            wide = mask.to(x.dtype).repeat_interleave(len(x) // len(mask), 0)
            return x * wide.view(*wide.shape, *[1] * (x.ndim - 2))

        return before

    with ExitStack() as stack:
        for layer, mask in zip(layers, masks, strict=True):
            for name, inputs in layer.readers.items():
                wide = mask.repeat_interleave(inputs, 1)
                stack.enter_context(hooked_before(network.get_submodule(name), hook(wide)))
        yield


def all_logits(network: nn.Module, layers: Sequence[Layer], masks: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return the logits (P, N, classes) of P modules for inputs (N, C, H, W), by masks: gradients reach the masks."""
    with masked(network, layers, masks):
        logits: Tensor = network(x.repeat(len(masks[0]), 1, 1, 1))
    return logits.unflatten(0, (-1, len(x)))


Evaluator = Callable[[nn.Module, Sequence[Layer], Sequence[Tensor], Tensor], Tensor]


@torch.inference_mode()
def by_masks(
    network: nn.Module, layers: Sequence[Layer], masks: Sequence[Tensor], x: Tensor, batch_size: int = 256
) -> Tensor:
    """Return the logits (P, N, classes) of P modules, each of which costs as much as the whole network."""
    parts = x.split(max(1, batch_size // len(masks[0])))
    tracked = track(parts, len(parts), "candidates, in batches")
    return torch.cat([all_logits(network, layers, masks, part) for part in tracked], 1)


@torch.inference_mode()
def by_slices(
    network: nn.Module, layers: Sequence[Layer], masks: Sequence[Tensor], x: Tensor, batch_size: int = 256
) -> Tensor:
    """Return the logits (P, N, classes) of P modules, each run as the smaller network that it is."""
    found = []
    for kept in track(zip(*masks, strict=True), len(masks[0]), "candidates"):
        with sliced(network, layers, kept):
            found.append(torch.cat([network(part) for part in x.split(batch_size)]))
    return torch.stack(found)


EVALUATORS: dict[str, Evaluator] = {"mask": by_masks, "slice": by_slices}
