"""What makes scores of different modules comparable: heads, or a scale and a bias for each module's logit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deeppatch.metrics.logit_scaling import scales_and_biases

HIDDEN = 10


class Heads(nn.Module):
    """One head for each of C modules: ReLU, linear to 10, ReLU, linear to 1, sigmoid (Qi et al., TOSEM 2023).

    All of them run as one batched product.
    """

    def __init__(self, modules: int, classes: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(_uniform(classes, modules, hidden, classes))
        self.bias1 = nn.Parameter(_uniform(classes, modules, hidden))
        self.weight2 = nn.Parameter(_uniform(hidden, modules, hidden))
        self.bias2 = nn.Parameter(_uniform(hidden, modules))

    def forward(self, logits: Tensor) -> Tensor:
        """Map every module's logits (N, C, classes) to scores (N, C) in (0, 1)."""
        hidden = torch.einsum("nmc,mhc->nmh", logits.relu(), self.weight1) + self.bias1
        return (torch.einsum("nmh,mh->nm", hidden.relu(), self.weight2) + self.bias2).sigmoid()

    def rescaled(self, scale: float, bias: float) -> Heads:
        """Return heads whose scores before the sigmoid are `scale` times these and `bias` more."""
        found = Heads(self.weight1.shape[0], self.weight1.shape[2], self.weight1.shape[1])
        state = self.state_dict()
        found.load_state_dict({**state, "weight2": scale * state["weight2"], "bias2": scale * state["bias2"] + bias})
        return found.to(self.bias2.device).requires_grad_(self.bias2.requires_grad)

    def only(self, label: int) -> Heads:
        """Return `Heads` of a single module."""
        classes = self.weight1.shape[2]
        one = Heads(1, classes, self.weight1.shape[1])
        one.load_state_dict({name: value[label : label + 1] for name, value in self.state_dict().items()})
        return one.to(self.bias2.device)


class Scales(nn.Module):
    """A scale and a bias for the logit of each of C modules; `labels` are the classes of these (default: 0 to C - 1).

    A module that lacks kernels gives smaller logits than another one, to images of any class.
    """

    labels: Tensor

    def __init__(self, modules: int, labels: Tensor | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(modules))
        self.bias = nn.Parameter(torch.zeros(modules))
        self.register_buffer("labels", torch.arange(modules) if labels is None else labels, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Map every module's logits (N, C, classes) to scores (N, C)."""
        return self._own(logits) * self.scale + self.bias

    @torch.no_grad()
    def fitted(self, logits: Tensor, labels: Tensor) -> Scales:
        """Return those of least cross entropy for every module's logits (N, C, classes) of images, with labels (N,)."""
        found = Scales(len(self.labels), self.labels)
        scales, biases = scales_and_biases(self._own(logits), labels)
        found.load_state_dict({"scale": scales, "bias": biases})
        return found.to(self.bias.device)

    def only(self, label: int) -> Scales:
        """Return `Scales` of a single module."""
        one = Scales(1, self.labels[label : label + 1])
        one.load_state_dict({name: value[label : label + 1] for name, value in self.state_dict().items()})
        return one.to(self.bias.device)

    def _own(self, logits: Tensor) -> Tensor:
        """Return the logit that each module gives to its class, (N, C)."""
        return logits.gather(2, self.labels.view(1, -1, 1).expand(len(logits), -1, 1)).squeeze(2)


def _uniform(inputs: int, *shape: int) -> Tensor:
    """Initialise as PyTorch's linear layers do, uniformly within one over the root of the number of inputs."""
    return torch.empty(shape).uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
