"""The last layer, whole and decomposed: find it, and replace it by one that reads k features a class."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.errors import UserError
from deeppatch.graph.hooks import captured, swap


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
        """Keep of a whole layer the weights at `indices` (C, k), and the biases."""
        indices = indices.to(whole.weight.device)
        bias = torch.zeros(len(indices), device=indices.device) if whole.bias is None else whole.bias
        return cls(indices, whole.weight.gather(1, indices), bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, D) to logits (N, C)."""
        features = features.to(self.weight.dtype)
        if len(features) == 1:  # nothing to be contiguous over
            return (features[:, self.indices] * self.weight).sum(2) + self.bias
        # one bag a class: k rows of the transposed features, weighted and summed, contiguous over the batch
        rows = features.T.contiguous()
        bags = F.embedding_bag(self.indices, rows, mode="sum", per_sample_weights=self.weight)
        return bags.T + self.bias

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one image: C k."""
        return self.weight.numel()


def final_layer(model: nn.Module, example: Tensor) -> str:
    """Return the name of the one linear layer that ends a classifier; UserError where there is no such layer."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if len(linear) != 1:
        raise UserError(
            f"this network has {len(linear)} linear layers ({', '.join(linear)}); decomposing needs one, right after "
            "the pooling: choose another -m, such as resnet20 or mobilenetv2_x0_5"
        )
    model.eval()
    with torch.no_grad(), captured(model.get_submodule(linear[0])) as outputs:
        logits = model(example)
    if len(outputs) != 1 or outputs[0].ndim != 2 or not torch.equal(outputs[0], logits):
        raise UserError(f"this network does not end in its linear layer {linear[0]}; choose another -m")
    return linear[0]


def decomposed(model: nn.Module, head: str, indices: Tensor) -> nn.Module:
    """Return a copy of a classifier with the linear layer called `head` decomposed."""
    other = copy.deepcopy(model)
    whole = other.get_submodule(head)
    assert isinstance(whole, nn.Linear)
    swap(other, head, DecomposedHead.from_linear(whole, indices))
    return other


@torch.inference_mode()
def microseconds(module: nn.Module, batch: Tensor) -> float:
    """Return the median time of a forward pass without gradients, in microseconds."""
    return 1e6 * runtime.median_seconds(lambda: module(batch), batch.device)
