"""Measure the sensitivity of layers: the composed accuracy when every module keeps only a part of one layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from deeppatch.graph.cutting import cut
from deeppatch.modular.layers import Layer
from deeppatch.modular.masking import masked
from deeppatch.progress import track

RATIOS = tuple(tenth / 10 for tenth in range(1, 11))


@torch.inference_mode()
def measure(
    network: fx.GraphModule,
    layers: Sequence[Layer],
    importance: Sequence[Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 8,
    save: Callable[[Tensor], object] = lambda _table: None,
    table: Tensor | None = None,
) -> Tensor:
    """Return the composed accuracy, in [0, 1], by layer and ratio (layers, 10), on inputs (N, C, H, W).

    At ratio r the module of every class keeps the r most important kernels of one layer, and all of the others (Qi et
    al., ASE 2022). Layers before it are computed once for all modules and ratios. The rows that `table` already has
    are not measured again; `save` is called after each layer.
    """
    rows = [] if table is None else list(table)
    parts = list(zip(x.split(batch_size), labels.split(batch_size), strict=True))
    whole = sum(int((network(part).argmax(1) == truth).sum()) for part, truth in parts) / len(labels)
    for index in track(range(len(rows), len(layers)), len(layers) - len(rows), "sensitivity"):
        layer = layers[index]
        ranks = importance[index].argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        masks = torch.cat([ranks < max(1, int(ratio * layer.kernels)) for ratio in RATIOS[:-1]])
        correct = torch.zeros(len(RATIOS) - 1, dtype=torch.int64, device=x.device)
        reader = next(iter(layer.readers))
        before, after = cut(network, reader)
        with masked(network, [layer], [masks]):
            for part, truth in parts:
                read, *crossing = (_copies(value, len(masks)) for value in before(part))
                logits = after(network.get_submodule(reader)(read), *crossing)
                scores = logits.view(len(correct), len(ranks), len(part), -1).diagonal(dim1=1, dim2=3)
                correct += (scores.argmax(2) == truth).sum(1)
        # with all kernels every module is the whole network
        rows.append(torch.tensor([*(correct / len(labels)).tolist(), whole], dtype=torch.float64))
        save(torch.stack(rows))
    return torch.stack(rows)


def _copies(x: Tensor, count: int) -> Tensor:
    return x.repeat(count, *[1] * (x.ndim - 1))


def sensitive(table: Tensor, drop: float, share: float) -> list[int]:
    """Return the layers whose accuracy falls by more than `drop` when modules keep a `share` of their kernels."""
    column = min(range(len(RATIOS)), key=lambda index: abs(RATIOS[index] - share))
    return [index for index, row in enumerate(table.tolist()) if row[-1] - row[column] > drop]
