"""Units go into a network and come out of it again without a trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.artifacts import state_digest
from deeppatch.errors import UserError
from deeppatch.patching.attachment import Attachment, attach
from deeppatch.patching.units import UNITS

EVERYWHERE = {"conv3": [0, 7, 11], "conv1": [5, 2], "conv2": [1, 3]}
KINDS = list(UNITS)


@pytest.fixture
def example() -> Tensor:
    torch.manual_seed(8)
    return torch.randn(6, 3, 12, 12)


def train(attachment: Attachment, network: nn.Module, steps: int = 3) -> None:
    """Take some large steps, as the training loop does."""
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.5, momentum=0.9)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        attachment.enter_training()
        x = torch.randn(16, 3, 12, 12, generator=draw)
        optimizer.zero_grad()
        F.cross_entropy(network(x), torch.arange(16) % 5).backward()
        optimizer.step()
    network.eval()


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [EVERYWHERE, {"conv2": [1, 3]}, {"conv3": [0, 7, 11]}])
def test_attach_and_remove_give_back_the_base_bit_for_bit(tiny, example, channels, kind, merged):
    network = tiny.network
    before, modules = state_digest(network.state_dict()), dict(network.named_modules())
    with torch.no_grad():
        logits = network(example)
    attachment = attach(network, channels, kind, example)
    train(attachment, network)
    if merged:
        attachment.merge()
    with torch.no_grad():
        assert (network(example) - logits).abs().max() > 1e-5, "training changed nothing"
    attachment.remove()
    with torch.no_grad():
        assert torch.equal(network(example), logits)
    assert state_digest(network.state_dict()) == before
    assert {name: id(module) for name, module in network.named_modules()} == {n: id(m) for n, m in modules.items()}
    assert hooks(network) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_patch_changes_while_it_trains(tiny, example, kind):
    network = tiny.network
    base = copy.deepcopy(network)
    attachment = attach(network, EVERYWHERE, kind, example)
    new = {name: value.detach().clone() for name, value in enumerate(attachment.parameters())}
    statistics = {name: copy.deepcopy(norm.state_dict()) for name, norm in attachment.norms.items()}
    train(attachment, network)
    for name, module in attachment.original_modules.items():
        assert state_digest(module.state_dict()) == state_digest(base.get_submodule(name).state_dict()), name
    assert state_digest(network.fc.state_dict()) == state_digest(base.fc.state_dict())
    assert not any(torch.equal(value, new[place]) for place, value in enumerate(attachment.parameters()))
    for name, norm in attachment.norms.items():
        after = norm.state_dict()
        assert not torch.equal(after["running_mean"], statistics[name]["running_mean"])
        assert not torch.equal(after["running_var"], statistics[name]["running_var"])
        assert after["num_batches_tracked"] == statistics[name]["num_batches_tracked"] + 3
        assert torch.equal(after["weight"], statistics[name]["weight"]), "scale and shift are the base's"
        assert torch.equal(after["bias"], statistics[name]["bias"])


@pytest.mark.parametrize("kind", KINDS)
def test_base_parameters_get_no_gradient(tiny, example, kind):
    attachment = attach(tiny.network, EVERYWHERE, kind, example)
    attachment.enter_training()
    F.cross_entropy(tiny.network(example), torch.zeros(6, dtype=torch.long)).backward()
    new = {id(parameter) for parameter in attachment.parameters()}
    everything = dict(tiny.network.named_parameters())
    assert new <= {id(parameter) for parameter in everything.values()}
    assert [
        name for name, p in everything.items() if id(p) not in new and (p.requires_grad or p.grad is not None)
    ] == []
    # the last convolution of a correction starts at zero, so that nothing before it moves in the first step
    moved = [p for p in attachment.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(moved) == len(EVERYWHERE)
    assert all(parameter.requires_grad for parameter in attachment.parameters())
    expected = {"replace": 3, "crtunit": 3 * (4 + 3 * 2)}[kind]
    assert len(attachment.parameters()) == len(new) == expected


@pytest.mark.parametrize(
    ("channels", "replaced"),
    [
        ({"conv1": [0]}, ["bn1", "bn2"]),
        ({"conv2": [0]}, ["bn2"]),
        ({"conv3": [0]}, []),
        ({"conv3": [0], "conv1": [1]}, ["bn1", "bn2"]),
    ],
)
def test_norms_before_the_first_patched_convolution_stay(tiny, example, channels, replaced):
    network = tiny.network
    before = dict(network.named_modules())
    attachment = attach(network, channels, "replace", example)
    assert list(attachment.norms) == replaced
    for name in ("bn1", "bn2"):
        assert (network.get_submodule(name) is before[name]) == (name not in replaced)
        assert all(attachment.norms[name] is not before[name] for name in attachment.norms)
    assert set(attachment.original_modules) == {*channels, *replaced}
    assert attachment.norm_after == {"conv1": "bn1", "conv2": "bn2"}


def test_training_mode_is_that_of_the_patch_alone(tiny, example):
    network = tiny.network
    network.fc = nn.Sequential(nn.Dropout(), network.fc)
    attachment = attach(network, {"conv2": [1, 3]}, "crtunit", example)
    attachment.enter_training()
    training = {name for name, module in network.named_modules() if module.training}
    assert training == {"bn2", "conv2.unit", *(f"conv2.unit.{place}" for place in range(10))}
    network.train()
    attachment.enter_training()
    assert {name for name, module in network.named_modules() if module.training} == training


class Backwards(nn.Module):
    """Defined in another order than it runs in, with a convolution that runs before all patched ones."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 5, 3)
        self.late_norm = nn.BatchNorm2d(4)
        self.middle = nn.Conv2d(4, 4, 3)
        self.early_norm = nn.BatchNorm2d(4)
        self.entry = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.early_norm(self.entry(x)))
        return self.last(F.relu(self.late_norm(self.middle(x)))).mean((2, 3))


def test_order_is_that_of_execution(example):
    attachment = attach(Backwards().eval(), {"last": [0], "entry": [1], "middle": [2]}, "replace", example)
    assert list(attachment.units) == ["entry", "middle", "last"]
    assert list(attachment.norms) == ["early_norm", "late_norm"]
    attachment = attach(Backwards().eval(), {"last": [0], "middle": [2]}, "replace", example)
    assert list(attachment.units) == ["middle", "last"]
    assert list(attachment.norms) == ["late_norm"]


@pytest.mark.parametrize("kind", KINDS)
def test_merged_network_equals_the_training_form_in_eval_mode(tiny, example, kind):
    network = tiny.network
    attachment = attach(network, EVERYWHERE, kind, example)
    train(attachment, network)
    with torch.no_grad():
        expected = network(example)
        attachment.merge()
        network.eval()
        torch.testing.assert_close(network(example), expected, rtol=1e-5, atol=1e-6)
    if kind == "replace":
        assert all(type(network.get_submodule(name)) is nn.Conv2d for name in EVERYWHERE)
        names = [name for name, _ in network.named_parameters()]
        attachment.remove()
        assert names == [name for name, _ in network.named_parameters()], "merged: same parameters as the base"


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_sorted_and_the_argument_stays(tiny, example, kind):
    channels = {"conv1": [5, 2]}
    attachment = attach(tiny.network, channels, kind, example)
    assert attachment.units["conv1"].channels.tolist() == [2, 5]
    assert channels == {"conv1": [5, 2]}


def test_attaching_moves_no_statistics_of_a_network_in_training_mode(tiny, example):
    before = state_digest(tiny.network.state_dict())
    attachment = attach(tiny.network.train(), {"conv2": [0]}, "replace", example)
    attachment.remove()
    assert state_digest(tiny.network.state_dict()) == before


def test_nothing_to_patch_is_an_error(tiny, example):
    with pytest.raises(UserError, match="no channel"):
        attach(tiny.network, {}, "replace", example)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_before_the_first_new_weight_is_differentiated(tiny, example, kind):
    network = tiny.network
    attachment = attach(network, {"conv2": [1, 3]}, kind, example)
    attachment.enter_training()
    seen = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output.requires_grad}))
    F.cross_entropy(network(example), torch.arange(6) % 5).backward()
    assert seen == {"conv1": False, "bn1": False, "conv2": True, "bn2": True, "conv3": True, "fc": True}
    trained = {id(parameter) for parameter in attachment.parameters()}
    assert {id(p) for p in network.parameters() if p.grad is not None} == trained
    assert all(parameter.requires_grad == (id(parameter) in trained) for parameter in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_training_stays_in_channels_last(tiny, example, kind):
    """Forward and backward: a convolution that loses the layout slows itself down and all that follow it."""
    network = tiny.network.to(memory_format=torch.channels_last)
    attach(network, EVERYWHERE, kind, example).enter_training()
    lost: list[str] = []

    def check(tensor: Tensor, what: str) -> None:
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            lost.append(what)

    def hook(module: nn.Module, _inputs: object, output: Tensor) -> None:
        check(output, f"{names[module]} forward")
        if output.requires_grad:
            output.register_hook(lambda gradient: check(gradient, f"{names[module]} backward"))

    names = {module: name for name, module in network.named_modules()}
    for module, name in names.items():
        if name and isinstance(module, (*UNITS.values(), nn.BatchNorm2d, nn.Conv2d)):
            module.register_forward_hook(hook)
            if isinstance(module, nn.Conv2d):
                check(module.weight, f"{name} weight")
    F.cross_entropy(network(example), torch.arange(6) % 5).backward()
    assert lost == []
