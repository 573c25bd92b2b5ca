"""The original and the patched network behind one common start: cut at a layer, or both whole."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deeppatch.errors import UserError
from deeppatch.graph import cutting, folding, hooks
from deeppatch.graph.tracing import Untraceable
from deeppatch.progress import info


class Branches(NamedTuple):
    """`before` maps normalised images to a tuple, what the layer reads first; both networks continue from all of it."""

    before: nn.Module
    original: nn.Module
    patched: nn.Module


def branches(original: nn.Module, patched: nn.Module, name: str, example: Tensor) -> Branches:
    """Split two networks that are equal up to a layer, so that a sample's way can be chosen there.

    Where both can be traced and cut there, the layers before run once for all samples. Otherwise both networks start
    from the images again, which is logged: then these layers run twice for every sample. This is so for networks that
    cannot be traced, and for those whose later layers read other values than one map per sample (sizes, say).

    Args:
        original: A network of normalised images, in eval mode; it is not changed.
        patched: The same with a patch, whose first patched layer in order of execution is `name`.
        name: The name of that layer.
        example: Normalised images (N, C, H, W).

    Raises:
        UserError: When the layer does not read one map per sample.
    """
    twice = f"original and patched network are kept whole, and for every sample the layers before {name} run twice"
    try:
        found, cut = _traced(original, patched, name, example)
        _check(found, original, patched, example)
        if not cut:
            info(f"the network cannot be cut at {name}, because later layers read sizes or the like: {twice}")
    except Untraceable as error:
        info(f"the network cannot be run as a graph: {error}; {twice}")
        found = _whole(original, patched, name)
    with torch.no_grad():
        crossing = found.before(example)
    if not _one_per_sample(crossing, example):
        raise UserError(f"the network cannot be switched at {name}: that layer does not read one map per sample")
    return found


def _traced(original: nn.Module, patched: nn.Module, name: str, example: Tensor) -> tuple[Branches, bool]:
    """Return the networks as folded graphs, and whether they could be cut at the layer."""
    graphs = []
    for network in map(copy.deepcopy, (original, patched)):
        hooks.swap(network, name, nn.Sequential(nn.Identity(), network.get_submodule(name)))
        graphs.append(folding.folded(network))
    (before, after), (_, after_patched) = (cutting.cut(graph, f"{name}.0") for graph in graphs)
    with torch.no_grad():
        crossing = before(example)
    if _one_per_sample(crossing, example):
        return Branches(before, after, after_patched), True
    return Branches(_WithImages(before), *map(_Whole, graphs)), False


@torch.no_grad()
def _check(found: Branches, original: nn.Module, patched: nn.Module, example: Tensor) -> None:
    """Raise Untraceable unless the graphs compute what the networks do."""
    crossing = found.before(example)
    for after, whole in ((found.original, original), (found.patched, patched)):
        expected = whole.eval()(example)
        close = 1e-3 * max(1.0, expected.abs().max().item())
        if not torch.allclose(after(*crossing), expected, rtol=1e-3, atol=close, equal_nan=True):
            raise Untraceable("it computes something else when it is run as a graph")


def _one_per_sample(crossing: tuple[object, ...], example: Tensor) -> bool:
    return all(isinstance(value, Tensor) and value.shape[:1] == example.shape[:1] for value in crossing)


class _WithImages(nn.Module):
    """Maps images to the input of a layer, the first of the values that a graph returns, and the images themselves."""

    def __init__(self, before: nn.Module) -> None:
        super().__init__()
        self.before = before

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.before(x)[0], x


class _Reached(Exception):
    """Ends a forward pass at the layer whose input is wanted."""

    def __init__(self, entering: Tensor) -> None:
        super().__init__()
        self.entering = entering


class _UpTo(nn.Module):
    """Maps images to the input of a layer and the images themselves; what comes after the layer does not run."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network = network
        network.get_submodule(name).register_forward_pre_hook(_stop)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        try:
            self.network(x)
        except _Reached as reached:
            return reached.entering, x
        raise UserError("the first patched layer did not run, so nothing says how to route these images")


def _stop(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    raise _Reached(inputs[0])


class _Whole(nn.Module):
    """A network that starts again from the images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, _entering: Tensor, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def _whole(original: nn.Module, patched: nn.Module, name: str) -> Branches:
    original, patched = copy.deepcopy(original), copy.deepcopy(patched)
    weights = {id(tensor): tensor for tensor in original.parameters()}
    return Branches(_UpTo(copy.deepcopy(original, weights), name), _Whole(original), _Whole(patched))
