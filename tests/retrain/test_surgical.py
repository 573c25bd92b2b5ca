"""One block of a network is trained, and the rest stays to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeppatch.artifacts import state_digest
from deeppatch.data.epochs import Passes
from deeppatch.errors import UserError
from deeppatch.retrain.blocks import blocks, parameters_of
from deeppatch.retrain.finetune import finetune
from deeppatch.retrain.surgical import surgical
from deeppatch.zoo.architectures import ARCHITECTURES

TRAINING = {"epochs": 2, "lr": 0.05, "batch_size": 20}
FIRST = {"network.conv1", "network.bn1", "network.conv2", "network.bn2"}


def moved_layers(before: nn.Module, after: nn.Module) -> set[str]:
    old = before.state_dict()
    return {name.rpartition(".")[0] for name, value in after.state_dict().items() if not torch.equal(value, old[name])}


@pytest.mark.parametrize(("block", "layers"), [(1, FIRST), (2, {"network.conv3", "network.fc"})])
def test_one_block_moves_and_the_rest_stays_statistics_included(tiny, data, blur, block, layers):
    before = state_digest(tiny.state_dict())
    found = surgical(tiny, data, blur, block=block, **TRAINING)
    assert moved_layers(tiny, found) == layers
    assert state_digest(tiny.state_dict()) == before
    size = sum(each.numel() for name in layers for each in tiny.get_submodule(name).parameters())
    assert found.facts == {"block": [block], "blocks": 2, "trained_parameters": size}
    buffers = 2 * (2 * 8 * 4 + 8) if block == 1 else 0
    assert (found.stored_bytes, found.passes) == (4 * size + buffers, Passes(120, 840))


class WithOffset(nn.Module):
    """A network with a parameter beside its layers, and dropout that is no layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.offset = nn.Parameter(torch.full((5,), 0.1))

    def forward(self, x):
        return self.network(x) + F.dropout(self.offset, 0.5, self.training)


@pytest.mark.parametrize("wrap", [nn.Identity(), WithOffset], ids=["plain", "with a parameter of its own"])
def test_all_blocks_at_once_are_finetune(tiny, data, blur, content, wrap):
    """Also where a layer does not run, where dropout draws, and where a module has parameters beside its layers."""
    tiny.network.fc = nn.Sequential(nn.Dropout(0.3), tiny.network.fc)
    tiny.network.unused = nn.Conv2d(8, 8, 1)
    model = wrap(tiny)
    both = [surgical(model, data, blur, block=[2, 1], **TRAINING), finetune(model, data, blur, **TRAINING)]
    assert content(both[0]) == content(both[1]) != content(model)
    assert both[0].history == both[1].history


def test_frozen_dropout_does_not_draw(tiny, data, blur, content):
    """The first block alone is trained without the noise of a dropout behind it."""
    plain = surgical(tiny, data, blur, **TRAINING)
    tiny.network.conv3 = nn.Sequential(tiny.network.conv3, nn.Dropout(0.5))
    with_dropout = surgical(tiny, data, blur, **TRAINING)
    assert torch.equal(with_dropout.network.conv1.weight, plain.network.conv1.weight)


@pytest.mark.parametrize("block", [0, 3, [1, 4], []])
def test_a_block_that_is_not_there_is_refused(tiny, data, blur, block):
    with pytest.raises(UserError, match="this network has 2 blocks; give numbers from 1 to 2"):
        surgical(tiny, data, blur, block=block)


def test_resnet32_has_three_blocks_and_vgg13_begins_with_two_convolutions():
    for name, count, inside in (
        ("resnet32", 3, 23_824),
        ("vgg13_bn", 5, 2 * 64 * 2 + 3 * 64 * 9 + 64 + 64 * 64 * 9 + 64),
    ):
        network = ARCHITECTURES[name](10)
        found = blocks(network, torch.zeros(2, 3, 32, 32))
        assert len(found) == count
        names = [parameters_of(network, each) for each in found]
        assert sum(map(len, names)) == len(set.union(*names)) == len(list(network.parameters())), "each in one block"
        sizes = dict(network.named_parameters())
        assert sum(sizes[each].numel() for each in names[0]) == inside


def test_a_block_begins_at_halved_maps_and_not_at_a_pooling_over_all_of_them():
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(1))
            self.stem, self.gate = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1)
            self.later, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 2, stride=2)

        def forward(self, x):
            x = self.stem(x) + self.position
            x = x * self.gate(x.mean((2, 3), keepdim=True))
            x = self.later(F.max_pool2d(x, 2))
            return self.last(x).flatten(1)

    found = blocks(Squeezed(), torch.zeros(2, 3, 17, 17))
    assert found == [["", "stem", "gate"], ["later"], ["last"]]
    assert parameters_of(Squeezed(), found[0]) == {"position", "stem.weight", "stem.bias", "gate.weight", "gate.bias"}
