"""One table of operations: ablation and splitting understand the same steps, and what is added to it is new to both."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.errors import UserError
from deeppatch.graph import operations
from deeppatch.graph.affine import Affine
from deeppatch.graph.network_graph import Graph
from deeppatch.graph.operations import Operation
from deeppatch.localization import channel_delta
from deeppatch.localization.channel_delta import ChannelDelta, Downstream
from deeppatch.modular.layers import find_layers
from deeppatch.modular.masking import masked, sliced_logits

EXAMPLE = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
LEAVES = {
    "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "gelu": F.gelu, "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid, "mish": F.mish, "elu": F.elu, "selu": F.selu,
    "leaky relu": F.leaky_relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
    "dropout": lambda x: F.dropout(x, training=False),
    "max pooling": lambda x: F.max_pool2d(x, 2), "mean pooling": lambda x: F.avg_pool2d(x, 2),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x, 4), "method relu": lambda x: x.relu(),
    "method sigmoid": lambda x: x.sigmoid(), "contiguous": lambda x: x.contiguous(), "crop": lambda x: x[:, :, ::2, 1:],
    "padding": lambda x: F.pad(x, (1, 2, 0, 1)), "padding by name": lambda x: F.pad(x, pad=(1, 1), value=0.5),
}  # fmt: skip
MODULES = {
    kind.__name__: kind(*given) for kind, given in {
        nn.ReLU: (), nn.ReLU6: (), nn.Hardswish: (), nn.Hardtanh: (), nn.SiLU: (), nn.GELU: (), nn.ELU: (),
        nn.LeakyReLU: (), nn.Sigmoid: (), nn.Hardsigmoid: (), nn.Mish: (), nn.SELU: (), nn.CELU: (),
        nn.Softplus: (), nn.Tanh: (), nn.Dropout: (), nn.Dropout2d: (), nn.Identity: (),
        nn.MaxPool2d: (2,), nn.AvgPool2d: (2,), nn.AdaptiveAvgPool2d: (4,), nn.AdaptiveMaxPool2d: (4,),
    }.items()
}  # fmt: skip


class Between(nn.Module):
    """Two convolutions with an operation between them, then a linear layer behind a flattening."""

    def __init__(self, function, flatten=nn.Flatten()) -> None:  # noqa: B008
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.function = function
        self.pool, self.flatten, self.head = nn.AdaptiveAvgPool2d(1), flatten, nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.pool(self.last(self.function(self.first(x))))))


def whole_steps(network: nn.Module) -> list[str]:
    """Edit a channel of the first convolution: the logits are right; return which steps were computed whole."""
    graph = Graph(network.eval(), EXAMPLE)
    with torch.inference_mode():
        base = graph.run(EXAMPLE)
        tail = Downstream(graph, graph.convs["first"])
        edit = ChannelDelta(1, torch.zeros_like(base[tail.start][:, 1:2]))
        narrow, step = {}, tail._step
        tail._step = lambda node, *given: narrow.setdefault(node, step(node, *given))
        found = tail.run(edit, base)

        def silenced(_module, _inputs, output):
            return output.index_fill(1, torch.tensor([1]), 0)

        handle = network.first.register_forward_hook(silenced)
        torch.testing.assert_close(found, network(EXAMPLE), rtol=1e-4, atol=1e-5)
        handle.remove()
    end = next(i for i, node in enumerate(tail.nodes) if node.target == "last")
    return [str(node) for node in tail.nodes[:end] if isinstance(narrow[node], Tensor)]


def split(network: nn.Module) -> None:
    """Find the layers, and hold a module with few kernels against the network with the others silenced."""
    layers = find_layers(network.eval(), EXAMPLE)
    assert [layer.name for layer in layers] == ["first", "last"]
    masks = [torch.tensor([[True, False, True, True, False, False]]), torch.tensor([[False, True, True, False, True]])]
    with torch.no_grad(), masked(network, layers, masks):
        expected = network(EXAMPLE)
    torch.testing.assert_close(sliced_logits(network, layers, masks, EXAMPLE)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*LEAVES, *MODULES])
def test_what_leaves_channels_apart_is_understood_by_both(name):
    network = Between((LEAVES | MODULES)[name])
    assert whole_steps(network) == []
    split(network)


def test_every_module_of_the_table_that_leaves_channels_apart_is_tested():
    known = {kind for kind, found in operations.MODULES.items() if found is Operation.CHANNELWISE}
    assert known == {type(module) for module in MODULES.values()}


@pytest.mark.parametrize("flatten", [nn.Flatten(), lambda x: torch.flatten(x, 1), lambda x: x.flatten(1)])
def test_every_flattening_is_understood_by_both(flatten):
    network = Between(F.relu, flatten)
    split(network)
    graph = Graph(network.eval(), EXAMPLE)
    kinds = [operations.operation(graph.module, node) for node in graph.nodes]
    assert kinds.count(Operation.FLATTEN) == 1


@pytest.mark.parametrize(
    "add", [operator.add, operator.iadd, torch.add, lambda a, b: a.add(b), lambda a, b: a.add_(b)],
)  # fmt: skip
def test_every_sum_is_understood_by_both(add):
    network = Between(lambda x: add(torch.relu(x), torch.tanh(x)))
    assert whole_steps(network) == []
    split(network)


@pytest.mark.parametrize(
    "concatenate",
    [
        lambda parts: torch.cat(parts, 1),
        lambda parts: torch.cat(tensors=parts, dim=-3),
        lambda parts: torch.concat(parts, dim=1),
        lambda parts: torch.concatenate(parts, 1),
    ],
)
def test_every_concatenation_is_understood_by_both(concatenate):
    network = Between(lambda x: concatenate([torch.relu(x)]))
    assert whole_steps(network) == []
    split(network)


@pytest.mark.parametrize("axes", [(2, 3), [-2, -1], (-1, -2), (3, 2)])
def test_every_spatial_mean_is_understood_by_both(axes):
    network = Between(F.relu, lambda x: torch.mean(x, axes))
    network.pool = nn.Identity()
    split(network)
    assert whole_steps(network) == []


def test_a_normalisation_in_inference_form_is_understood_by_both(lively):
    norm = lively(nn.BatchNorm2d(6))
    network = Between(nn.Sequential(nn.ReLU(), Affine(norm, torch.empty(6, 1))))
    assert whole_steps(network) == []
    split(network)
    torch.testing.assert_close(network(EXAMPLE), Between(nn.Sequential(nn.ReLU(), norm))(EXAMPLE))


def test_what_is_added_to_the_table_is_new_to_both(monkeypatch):
    network = Between(torch.square)
    assert whole_steps(network) == ["square"]
    with pytest.raises(UserError, match="cannot be split: square mixes channels"):
        find_layers(network, EXAMPLE)
    monkeypatch.setitem(operations.FUNCTIONS, torch.square, Operation.CHANNELWISE)
    assert whole_steps(network) == []
    split(network)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.cat([x, x], 2), "cat"),
        (lambda x: torch.cat(x.chunk(2, 1), 1), "chunk"),
        (lambda x: x[:, [5, 4, 3, 2, 1, 0]], "getitem"),
        (lambda x: x + x.mean(1, keepdim=True), "mean"),
        (lambda x: x + torch.mean(x, -1, keepdim=True), "mean"),
    ],
)
def test_what_only_ablation_can_follow_is_refused_by_splitting_with_its_name(function, name):
    network = Between(function)
    whole_steps(network)
    with pytest.raises(UserError, match=f"cannot be split: {name} mixes channels"):
        find_layers(network, EXAMPLE)


def test_channels_that_are_added_to_one_channel_are_refused():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 1, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.head(self.one(x) + self.two(x)).mean((2, 3))

    with pytest.raises(UserError, match="add mixes channels"):
        find_layers(Gate().eval(), EXAMPLE)


def test_ablation_has_a_rule_for_every_kind_of_operation():
    assert channel_delta.RULES.keys() == set(Operation)
