"""The decomposed last layer, which reads k features for each class."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.data.dataset import Data
from deeppatch.errors import UserError
from deeppatch.features import last_linear
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


def decompose(model: nn.Module, data: Data, indices: Tensor) -> nn.Module:
    """Return a copy of a classifier whose last layer reads k features for each class, and no others.

    Args:
        model: A classifier that ends in a linear layer of C outputs; it is not changed.
        data: Images that the classifier reads; two of them show which layer computes its logits.
        indices: The features that each class reads, int64 (C, k), as `influence(...).indices()` returns them.

    Returns:
        The copy, with the weights of the model at these features.

    Raises:
        UserError: When the network does not end in a linear layer, or the indices do not fit that layer.

    >>> from deeppatch.data.dataset import Data
    >>> images = (torch.rand(30, 3, 2, 2), torch.arange(30) % 3)
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    >>> sparse = decompose(network, Data.of(images, images), torch.tensor([[0, 4], [2, 3], [11, 0]]))
    >>> sparse(torch.rand(5, 3, 2, 2)).shape, sparse[1].weight.shape
    (torch.Size([5, 3]), torch.Size([3, 2]))
    """
    name, whole = last_linear(model, data.example.to(next(model.parameters()).device))
    outputs, inputs = whole.weight.shape
    if indices.ndim != 2 or len(indices) != outputs or not 0 <= int(indices.min()) <= int(indices.max()) < inputs:
        given = f"{tuple(indices.shape)} from {int(indices.min())} to {int(indices.max())}"
        raise UserError(
            f"the last layer, {name}, has {outputs} outputs and {inputs} inputs; indices must be ({outputs}, k) "
            f"numbers from 0 to {inputs - 1}, not {given}"
        )
    return with_head(model, name, DecomposedHead.from_linear(whole, indices))


def with_head(model: nn.Module, layer: str, head: nn.Module) -> nn.Module:
    """Return a copy of a model in which `head` stands in the place of the module named `layer`."""
    other = copy.deepcopy(model)
    swap(other, layer, head)
    return other


@torch.inference_mode()
def microseconds(module: nn.Module, batch: Tensor) -> float:
    """Return the median time of a forward pass without gradients, in microseconds."""
    return 1e6 * runtime.median_seconds(lambda: module(batch), batch.device)
