"""One way to trace a network: a copy in eval mode, or a reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import deeppatch
from deeppatch.graph.affine import Affine
from deeppatch.graph.folding import folded
from deeppatch.graph.network_graph import Graph
from deeppatch.graph.tracing import Untraceable, trace
from deeppatch.modular.layers import find_layers


def test_a_trace_is_a_copy_in_eval_mode_that_answers_as_the_network(tiny):
    network = tiny.network.train()
    found = trace(network)
    assert network.training
    assert not any(module.training for module in found.modules())
    assert not {value.data_ptr() for value in network.state_dict().values()} & {
        value.data_ptr() for value in found.state_dict().values() if value.ndim
    }
    x = torch.rand(2, 3, 12, 12)
    assert torch.equal(found(x), network.eval()(x))


def test_a_network_in_inference_form_is_traced_again_with_its_normalisations_whole():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    again = trace(folded(network))
    assert any(isinstance(module, Affine) for module in again.modules())
    assert [layer.followers for layer in find_layers(folded(network), torch.rand(1, 3, 8, 8))] == [["2"], []]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x).mean((2, 3))
        return y if y.sum() > 0 else -y


class WithOptions(nn.Module):
    """Takes more than the images, as many networks of libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, mask=None, causal=False, scale=2.0, levels=(1, 2), *, name="all"):
        if mask is not None or causal or len(levels) != 2:
            raise ValueError(name)
        return self.conv(x) * scale


def test_further_arguments_of_a_forward_pass_have_their_defaults():
    network, x = WithOptions().eval(), torch.rand(2, 3, 8, 8)
    found = trace(network)
    assert [node.name for node in found.graph.nodes if node.op == "placeholder"] == ["x"]
    assert torch.equal(found(x), network(x))
    assert Graph(network, x).convs.keys() == {"conv"}


class Silent(nn.Module):
    def forward(self, x):
        raise ValueError


@pytest.mark.parametrize("network", [Branching(), Silent()])
@pytest.mark.parametrize("read", [trace, folded, lambda network: Graph(network, torch.rand(2, 3, 8, 8))])
def test_every_reader_is_told_why_a_network_cannot_be_traced(network, read):
    with pytest.raises(Untraceable, match="its forward pass depends on values") as refusal:
        read(network)
    assert "\n" not in str(refusal.value)


def test_nothing_else_traces():
    sources = Path(deeppatch.__file__).parent.rglob("*.py")
    users = {
        path.name
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if getattr(node, "attr", "") in ("symbolic_trace", "Tracer")
    }
    assert users == {"tracing.py"}
