"""The decomposed last layer, which reads k features for each class."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.errors import UserError
from deeppatch.graph.hooks import swap


class DecomposedHead(nn.Module):
    """A linear layer in which each class reads its own k features: logit_c = sum over i in I_c of W[c, i] f_i + b_c.

    `indices` int64 (C, k), `weight` (C, k), `bias` (C,). Badola et al., 2023.
    """

    indices: Tensor

    def __init__(self, indices: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices.clone())
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())

    @classmethod
    def from_linear(cls, whole: nn.Linear, indices: Tensor) -> DecomposedHead:
        """Return a head with the biases of a linear layer and its weights at `indices` (C, k)."""
        indices = indices.to(whole.weight.device)
        bias = torch.zeros(len(indices), device=indices.device) if whole.bias is None else whole.bias
        return cls(indices, whole.weight.gather(1, indices), bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, D) to logits (N, C)."""
        features = features.to(self.weight.dtype)
        if len(features) == 1:  # a single image has no batch dimension to be contiguous over
            return (features[:, self.indices] * self.weight).sum(2) + self.bias
        # one bag for each class: k rows of the transposed features, weighted and summed, contiguous over the batch
        rows = features.T.contiguous()
        bags = F.embedding_bag(self.indices, rows, mode="sum", per_sample_weights=self.weight)
        return bags.T + self.bias

    @property
    def multiply_adds(self) -> int:
        """The number of multiply-adds for one image: C k."""
        return self.weight.numel()


def decompose(model: nn.Module, indices: Tensor, *, layer: str | None = None) -> nn.Module:
    """Return a copy of a classifier whose last layer reads k features for each class, and no others.

    Args:
        model: A classifier that ends in a linear layer of C outputs; it is not changed.
        indices: The features that each class reads, int64 (C, k), as `influence(...).indices()` returns them.
        layer: The name of that layer within the model; needed only if several linear layers have C outputs.

    Returns:
        The copy, with the weights of the model at these features.

    Raises:
        UserError: When no linear layer fits the indices, several do and `layer` is not given, or `layer` is not a
            linear layer.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    >>> sparse = decompose(network, torch.tensor([[0, 4], [2, 3], [11, 0]]))
    >>> sparse(torch.rand(5, 3, 2, 2)).shape, sparse[1].weight.shape
    (torch.Size([5, 3]), torch.Size([3, 2]))
    """
    name = _layer_for(model, indices) if layer is None else layer
    other = copy.deepcopy(model)
    whole = dict(other.named_modules()).get(name)
    if not isinstance(whole, nn.Linear):
        raise UserError(f"layer {name!r} is not a linear layer of the model; name one that is")
    swap(other, name, DecomposedHead.from_linear(whole, indices))
    return other


def _layer_for(model: nn.Module, indices: Tensor) -> str:
    """Return the name of the only linear layer that the indices fit."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    fitting = [
        name
        for name, module in linear.items()
        if module.out_features == len(indices) and module.in_features > int(indices.max())
    ]
    if len(fitting) == 1:
        return fitting[0]
    wanted = f"a linear layer of {len(indices)} outputs and more than {int(indices.max())} inputs"
    if fitting:
        raise UserError(f"{', '.join(fitting)} can each be {wanted}; say which with layer=")
    sizes = ", ".join(f"{name} ({m.in_features} to {m.out_features})" for name, m in linear.items()) or "none"
    raise UserError(f"the network has no {wanted.removeprefix('a ')}: its linear layers are {sizes}")


@torch.inference_mode()
def microseconds(module: nn.Module, batch: Tensor) -> float:
    """Return the median time of a forward pass without gradients, in microseconds."""
    return 1e6 * runtime.median_seconds(lambda: module(batch), batch.device)
