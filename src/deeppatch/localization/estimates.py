"""Estimate the scores of all filters from one pass over the data, without ablation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.graph.hooks import convolutions, execution_order, hooked
from deeppatch.localization.ablation import DegradedBatch, Scores

Tick = Callable[[], object]


def taylor(
    network: nn.Module, batches: Iterable[DegradedBatch], tick: Tick, names: Sequence[str] | None = None
) -> Scores:
    """Estimate the increase of the mean loss on degraded images when a filter is set to zero; low ones are suspicious.

    First-order Taylor expansion of the cross entropy in the filter's output a (Molchanov et al., ICLR 2017, eq. 8, but
    signed): loss(0) - loss(a) is about -sum(a dloss/da). One backward pass per batch covers all filters of the
    convolutions `names` (default: all).
    """
    network.eval()
    layers = _chosen(network, names)
    totals = {name: torch.zeros(conv.out_channels, dtype=torch.float64) for name, conv in layers.items()}
    images = 0
    for batch in batches:
        with torch.enable_grad(), _outputs(network, list(layers), keep_graph=True) as outputs:
            loss = F.cross_entropy(network(batch.degraded), batch.labels, reduction="sum")
            gradients = torch.autograd.grad(loss, [outputs[name] for name in layers], materialize_grads=True)
        for name, gradient in zip(layers, gradients, strict=True):
            totals[name] -= (outputs[name].detach() * gradient).sum((0, 2, 3)).double().cpu()
        images += len(batch.labels)
        tick()
    return {name: (total / images).tolist() for name, total in totals.items()}


@torch.no_grad()
def activation(
    network: nn.Module, batches: Iterable[DegradedBatch], tick: Tick, names: Sequence[str] | None = None
) -> Scores:
    """Measure the mean absolute change of each filter's map under degradation; filters with high values are suspicious.

    Maps are taken after the batch normalisation that follows the convolution, if there is one, so that channels are
    comparable. Every batch must contain the clean images. `names` are those of the convolutions (default: all).
    """
    network.eval()
    layers = _chosen(network, names)
    totals = {name: torch.zeros(conv.out_channels, dtype=torch.float64) for name, conv in layers.items()}
    images = 0
    norm_after: dict[str, str] = {}
    for batch in batches:
        if batch.clean is None:
            raise ValueError("activation needs the clean version of every batch")
        norm_after = norm_after or execution_order(network, batch.degraded[:1])[1]
        with _outputs(network, [norm_after.get(name, name) for name in layers]) as outputs:
            network(batch.clean)
            clean = dict(outputs)
            network(batch.degraded)
        for name in layers:
            layer = norm_after.get(name, name)
            totals[name] += (outputs[layer] - clean[layer]).abs().mean((2, 3)).sum(0).double().cpu()
        images += len(batch.labels)
        tick()
    return {name: (total / images).tolist() for name, total in totals.items()}


def _chosen(network: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Conv2d]:
    layers = convolutions(network)
    return layers if names is None else {name: layers[name] for name in names}


@contextmanager
def _outputs(network: nn.Module, names: list[str], *, keep_graph: bool = False) -> Iterator[dict[str, Tensor]]:
    """Record the latest output of each named module; later in-place operations do not change it."""
    recorded: dict[str, Tensor] = {}

    def record(name: str) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            if keep_graph and not output.requires_grad:
                output.requires_grad_()
            recorded[name] = output
            return output.clone()

        return hook

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(hooked(network.get_submodule(name), record(name)))
        yield recorded
