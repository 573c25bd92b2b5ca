from __future__ import annotations

import pytest
import torch
import torch.fx
from torch import nn

from deeppatch.graph import cutting, folding, hooks
from deeppatch.graph.affine import Affine


def count_hooks(model: nn.Module) -> int:
    """How many forward hooks and pre-hooks the modules of a model carry."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture
def network(tiny):
    return tiny.network


@pytest.fixture
def x():
    return torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(2))


class Branches(nn.Module):
    """Defined in another order than it runs; one convolution twice, one without, one norm over a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 4, 1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(4)
        self.sum_norm = nn.BatchNorm2d(4)
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())

    def forward(self, x):
        first = self.norm(self.grouped(self.inner(x)))
        return self.last(self.sum_norm(self.last(first) + first))


class Broken(Exception):
    pass


def test_convolutions_come_in_order_of_definition_without_grouped_ones(network):
    assert list(hooks.convolutions(network)) == ["conv1", "conv2", "conv3"]
    found = hooks.convolutions(Branches())
    assert list(found) == ["last", "inner.0"]
    assert all(isinstance(conv, nn.Conv2d) for conv in found.values())


@pytest.mark.parametrize("name", ["conv2", "inner.0"])
def test_swap_puts_a_module_in_place_and_returns_the_old_one(network, name):
    network = network if name == "conv2" else Branches()
    old, new, names = network.get_submodule(name), nn.Identity(), [each for each, _ in network.named_modules()]
    assert hooks.swap(network, name, new) is old
    assert network.get_submodule(name) is new
    assert hooks.swap(network, name, old) is new
    assert [each for each, _ in network.named_modules()] == names


def test_swap_of_an_unknown_place_changes_nothing(network):
    with pytest.raises(AttributeError):
        hooks.swap(network, "conv9", nn.Identity())
    assert not hasattr(network, "conv9")


def test_a_hook_runs_within_its_block_only(network, x):
    seen = []
    with hooks.hooked(network.conv1, lambda *given: seen.append(given)):
        assert count_hooks(network) == 1
        network(x)
    assert count_hooks(network) == 0
    network(x)
    assert len(seen) == 1
    module, inputs, output = seen[0]
    assert module is network.conv1
    assert torch.equal(inputs[0], x)
    assert torch.equal(output, network.conv1(x))


def test_a_hook_may_replace_the_output(network, x):
    plain = network(x)
    with hooks.hooked(network.conv1, lambda _module, _inputs, output: output * 0):
        assert not torch.equal(network(x), plain)
    assert torch.equal(network(x), plain)


def test_captured_keeps_copies_pass_after_pass(network, x):
    with hooks.captured(network.conv1) as outputs:
        network(x)
        network(2 * x)
    want = [network.conv1(x), network.conv1(2 * x)]
    assert len(outputs) == 2, "nothing is captured after the block"
    assert count_hooks(network) == 0
    assert all(torch.equal(*pair) for pair in zip(outputs, want, strict=True))


def test_captured_is_not_changed_by_what_follows_in_place():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
    nn.init.constant_(network[0].bias, -10)
    with hooks.captured(network[0]) as outputs, torch.no_grad():
        network(torch.rand(1, 1, 3, 3))
    assert (outputs[0] < 0).all()


@pytest.mark.parametrize("block", [lambda m: hooks.hooked(m, lambda *_: None), hooks.captured])
def test_no_hook_survives_an_exception(network, x, block):
    with pytest.raises(Broken), block(network.conv2):
        network(x)
        raise Broken
    assert count_hooks(network) == 0


def test_no_hook_survives_an_exception_in_the_hook_itself(network, x):
    def broken(*_):
        raise Broken

    with pytest.raises(Broken), hooks.hooked(network.conv2, broken):
        network(x)
    assert count_hooks(network) == 0


def test_trace_tells_the_order_of_execution_and_the_norm_after_each_convolution(network, x):
    order, norm_after = hooks.execution_order(network, x)
    assert order == ["conv1", "bn1", "conv2", "bn2", "conv3"]
    assert norm_after == {"conv1": "bn1", "conv2": "bn2"}


def test_trace_follows_execution_not_definition(x):
    order, norm_after = hooks.execution_order(Branches(), x)
    assert order == ["inner.0", "grouped", "norm", "last", "sum_norm", "last"]
    assert norm_after == {"grouped": "norm"}, "a norm over a sum belongs to no convolution"


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_trace_leaves_modes_statistics_and_hooks_as_they_were(network, x):
    network.train()
    network.bn2.eval()
    before, state = flags(network), {key: value.clone() for key, value in network.state_dict().items()}
    seen = []
    with hooks.hooked(network.conv1, lambda module, *_: seen.append(module.training)):
        hooks.execution_order(network, x)
    assert seen == [False], "it runs in eval mode"
    assert flags(network) == before
    assert count_hooks(network) == 0
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_trace_restores_modes_and_hooks_after_an_exception(network, x):
    network.train()
    network.bn1.eval()
    before = flags(network)
    with pytest.raises(RuntimeError):
        hooks.execution_order(network, x[:, :2])  # conv1 reads three channels
    assert flags(network) == before
    assert count_hooks(network) == 0


def test_trace_keeps_no_graph(network, x):
    with hooks.captured(network.conv1) as outputs:
        hooks.execution_order(network, x)
    assert not outputs[0].requires_grad


class Shared(nn.Module):
    """Norms that can be folded and norms that cannot: over a shared output, over a sum, of a module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.plain_norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.read_twice, self.read_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.grouped, self.bare_norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4, affine=False)
        self.twice, self.twice_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.sum_norm = nn.BatchNorm2d(4)
        for norm in (m for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)

    def forward(self, x):
        x = torch.relu(self.plain_norm(self.plain(x)))
        shared = self.read_twice(x)
        x = self.sum_norm(self.read_norm(shared) + shared)
        x = self.bare_norm(self.grouped(x))
        return self.twice_norm(self.twice(self.twice_norm(self.twice(x))))


@torch.no_grad()
def test_folding_takes_norms_in_where_nothing_else_reads_the_convolution(x):
    torch.manual_seed(4)
    network = Shared()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    found = folding.folded(network)
    torch.testing.assert_close(found(x), network.eval()(x), rtol=1e-5, atol=1e-5)
    assert not [name for name, module in found.named_modules() if isinstance(module, nn.BatchNorm2d)]
    kept = {name for name, module in found.named_modules() if isinstance(module, Affine)}
    assert kept == {"read_norm", "sum_norm", "twice_norm"}
    assert found.plain.bias is not None
    assert not any(parameter.requires_grad for parameter in found.parameters())
    for parameter in found.parameters():
        parameter.zero_()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items()), "memory is shared"


def test_folding_leaves_modes_and_modules_of_a_network_in_training(network):
    network.train()
    modules = dict(network.named_modules())
    assert not folding.folded(network).training
    assert all(module.training for module in modules.values())
    assert dict(network.named_modules()) == modules


@torch.no_grad()
def test_affine_is_a_normalisation_at_inference(x):
    norm = Shared().plain_norm.eval()
    y = torch.rand(2, 4, 5, 6)
    affine = Affine(norm, torch.empty(4, 1))
    torch.testing.assert_close(affine(y), norm(y))
    chosen = torch.tensor([3, 1])
    some = Affine(norm, torch.empty(4, 1), chosen)
    torch.testing.assert_close(some(y[:, chosen]), norm(y)[:, chosen])
    assert torch.equal(Affine(None, torch.empty(4, 1))(y), y)
    half = Affine(norm, torch.empty(4, 1))(y.bfloat16())
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "crossing"), [("conv1", 0), ("conv2", 1), ("conv3", 0)])
@torch.no_grad()
def test_a_cut_network_goes_on_with_what_crosses_the_cut(network, x, name, crossing):
    graph = folding.folded(network)
    before, after = cutting.cut(graph, name)
    entering, *others = before(x)
    assert len(others) == crossing
    seen = []
    with hooks.hooked(graph.get_submodule(name), lambda _module, inputs, _output: seen.append(inputs[0])):
        graph(x)
    assert torch.equal(entering, seen[0])
    assert torch.equal(after(graph.get_submodule(name)(entering), *others), graph(x))
    for part in (before, after):
        assert name not in dict(part.named_modules())


@torch.no_grad()
def test_constants_that_both_sides_read_do_not_cross(x):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            factor = self.factor
            return self.conv(x * factor) * factor

    graph = folding.folded(Scaled())
    before, after = cutting.cut(graph, "conv")
    (entering,) = before(x)
    assert torch.equal(after(graph.conv(entering)), graph(x))
