"""Branches whose maps are concatenated: each has its own kernels, and every reader reads them where they lie."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.graph.folding import folded
from deeppatch.graph.hooks import hooked
from deeppatch.modular import sensitivity
from deeppatch.modular.extract import extract
from deeppatch.modular.gradient_search import GradientSearch
from deeppatch.modular.importance import importances
from deeppatch.modular.layers import find_layers
from deeppatch.modular.masking import masked_logits, sliced_logits
from deeppatch.modular.splitting import split_into_modules
from deeppatch.zoo.incecnn import InceCNN

X = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Dense(nn.Module):
    """Maps are concatenated again and again, and normalised anew behind each concatenation, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow1, self.grow2 = conv(3, 5), conv(5, 4), conv(9, 3)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(5), nn.BatchNorm2d(9), nn.BatchNorm2d(12)
        self.depthwise = conv(12, 12, groups=12)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.grow1(F.relu(self.norm1(x)))], dim=1)
        x = torch.concat((self.grow2(F.relu(self.norm2(x))), x), dim=-3)
        return self.fc(F.relu(self.depthwise(F.relu(self.norm3(x)))).mean((2, 3)))


class Flattened(nn.Module):
    """Maps of different sizes are flattened, concatenated, and read by one linear layer together with the image."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(3, 4), conv(3, 5, stride=2)
        self.fc = nn.Linear(4 * 144 + 3 * 144 + 5 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = [F.relu(self.one(x)), x, F.relu(self.two(x))]
        return self.fc(torch.cat([torch.flatten(each, 1) for each in maps], 1))


class Added(nn.Module):
    """Two concatenations of the same layout are added: their branches are tied one by one."""

    def __init__(self, other: tuple[int, int] = (4, 6)) -> None:
        super().__init__()
        self.a, self.b = conv(3, 4), conv(3, 6)
        self.c, self.d = conv(3, other[0]), conv(3, other[1])
        self.last, self.fc = conv(10, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], 1) + torch.cat([self.c(x), self.d(x)], 1)
        return self.fc(F.relu(self.last(F.relu(y))).mean((2, 3)))


class Twice(nn.Module):
    """One map is concatenated with itself, so that one module reads each of its kernels twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last, self.fc = conv(3, 4), conv(3, 5), conv(13, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.one(x))
        return self.fc(F.relu(self.last(torch.cat([y, F.relu(self.two(x)), y], 1))).mean((2, 3)))


class Later(Twice):
    """Two branches that one module reads are added later, so that no kernel of them can be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.two, self.last, self.fc = conv(3, 4), conv(8, 6), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        y = F.relu(self.last(torch.cat([one, two], 1)))
        return self.fc(torch.cat([F.relu(one + two), y], 1).mean((2, 3)))


def small_incecnn() -> nn.Module:
    return InceCNN(4, width=1 / 16)


NETWORKS = [small_incecnn, Dense, Flattened, Added, Twice, Later]


def case(build, lively):
    torch.manual_seed(4)
    network = lively(build()).double()
    layers = find_layers(network, X)
    masks = [torch.rand(2, layer.kernels) < 0.6 for layer in layers]
    for mask in masks:
        mask[:, 0] = True
    return network, layers, masks


def test_the_layers_of_incecnn_are_its_twelve_convolutions():
    layers = find_layers(InceCNN(10).eval(), torch.rand(2, 3, 32, 32))
    names = [f"conv_{index}.0" for index in range(12)]
    assert [layer.convs for layer in layers] == [[name] for name in names]
    assert [layer.followers for layer in layers] == [[f"conv_{index}.1"] for index in range(12)]
    read = [[1], [2], [3, 4, 5], *[[6, 7, 8]] * 3, *[[9, 10, 11]] * 3]
    assert [list(layer.readers) for layer in layers[:9]] == [[names[index] for index in each] for each in read]
    assert [layer.readers for layer in layers[9:]] == [{"fc_12": 1}] * 3
    starts = [layer.span(next(iter(layer.readers))).start for layer in layers]
    assert starts == [0, 0, 0, 0, 256, 512, 0, 512, 1024, 0, 512, 1024]


def test_readers_and_followers_of_concatenated_maps_have_their_starts(lively):
    _, (stem, grow1, grow2), _ = case(Dense, lively)
    assert stem.followers == ["norm1", "norm2", "norm3", "depthwise"]
    assert (stem.readers, stem.starts) == ({"grow1": 1, "grow2": 1, "fc": 1}, {"norm3": 3, "depthwise": 3, "fc": 3})
    assert grow1.starts == {"norm2": 5, "grow2": 5, "norm3": 8, "depthwise": 8, "fc": 8}
    assert (grow2.convs, grow2.starts) == (["grow2"], {})
    _, layers, _ = case(Flattened, lively)
    assert [(layer.readers, layer.starts) for layer in layers] == [({"fc": 144}, {}), ({"fc": 36}, {"fc": 7 * 144})]


@pytest.mark.parametrize(
    ("build", "convs"),
    [
        (Added, [["a", "c"], ["b", "d"], ["last"]]),
        (lambda: Added((6, 4)), [["last"]]),
        (Twice, [["two"], ["last"]]),
        (Later, [["last"]]),
    ],
    ids=["same layout", "another layout", "read twice", "added later"],
)
def test_what_cannot_be_dropped_alone_is_tied_or_kept(build, convs, lively):
    assert [layer.convs for layer in case(build, lively)[1]] == convs


@pytest.mark.parametrize("build", NETWORKS)
def test_masks_and_smaller_networks_answer_the_same(build, lively):
    network, layers, masks = case(build, lively)
    with torch.no_grad():
        by_mask = masked_logits(network, layers, masks, X)
        torch.testing.assert_close(sliced_logits(network, layers, masks, X), by_mask, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(by_mask[0], by_mask[1])
        for row in range(2):
            small = extract(network, layers, [mask[row] for mask in masks])
            torch.testing.assert_close(small(X), by_mask[row], rtol=1e-10, atol=1e-10)
            kept = {
                name: int(mask[row].sum()) for layer, mask in zip(layers, masks, strict=True) for name in layer.convs
            }
            assert {name: small.get_submodule(name).out_channels for name in kept} == kept
        every = [torch.ones_like(mask[:1]) for mask in masks]
        assert torch.equal(sliced_logits(network, layers, every, X)[0], network(X))


@pytest.mark.parametrize("form", [lambda network: network, folded], ids=["as trained", "folded"])
def test_a_module_is_the_network_with_the_maps_of_dropped_kernels_set_to_zero(form, lively):
    network, layers, masks = case(small_incecnn, lively)
    with torch.no_grad(), ExitStack() as stack:
        split = form(network)
        found = sliced_logits(split, find_layers(split, X), masks, X)[0]
        for layer, mask in zip(layers, masks, strict=True):
            block = network.get_submodule(layer.name.split(".")[0])  # convolution, normalisation and ReLU
            wide = mask[0].view(1, -1, 1, 1)
            stack.enter_context(hooked(block, lambda _m, _i, output, wide=wide: output * wide))
        torch.testing.assert_close(found, network(X), rtol=1e-10, atol=1e-10)


def test_gradients_reach_the_masks_of_every_branch(lively):
    network, layers, masks = case(small_incecnn, lively)
    soft = [mask.double().requires_grad_() for mask in masks]
    value = masked_logits(network, layers, soft, X).square().sum()
    gradients = torch.autograd.grad(value, soft)
    with torch.no_grad():
        for index in (2, 4, 5, 11):  # before the blocks, and the later branches of them
            moved = [mask.detach().clone() for mask in soft]
            moved[index][1, 0] += 1e-5
            slope = (masked_logits(network, layers, moved, X).square().sum() - value) / 1e-5
            torch.testing.assert_close(slope, gradients[index][1, 0], rtol=1e-3, atol=1e-6)


@pytest.fixture
def measured(lively):
    """A small InceCNN in inference form, its layers, images of which it is sure, and their importances."""
    torch.manual_seed(4)
    network = folded(lively(small_incecnn()).double())
    x = torch.rand(24, 3, 12, 12, dtype=torch.float64) * torch.rand(24, 3, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        network.fc_12.bias -= network(x).mean(0)
        scale = 5 / network(x).std()
        network.fc_12.weight *= scale
        network.fc_12.bias *= scale
    layers, labels = find_layers(network, x[:2]), torch.arange(24) % 4
    return network, layers, x, labels, importances(network, layers, x, labels, 4)


def test_importance_is_that_of_a_branch_s_own_maps(measured):
    network, layers, x, labels, found = measured
    maps: dict[int, Tensor] = {}
    with torch.no_grad(), ExitStack() as stack:
        for index in range(12):
            block = network.get_submodule(f"conv_{index}.2")
            stack.enter_context(hooked(block, lambda _m, _i, output, index=index: maps.update({index: output})))
        probability = network(x).softmax(1)[torch.arange(24), labels]
    for label in range(4):
        sure = (labels == label) & (probability >= 0.9)
        counted = sure if sure.any() else labels == label
        for index, layer in enumerate(layers):
            read = maps[index] if index < 2 else F.max_pool2d(maps[index], 2) if index < 9 else maps[index].mean((2, 3))
            norms = read.abs().reshape(24, layer.kernels, -1).sum(2)
            torch.testing.assert_close(found[index][label], norms[counted].mean(0))


def test_sensitivity_of_a_branch_is_that_of_composed_modules(measured):
    network, layers, x, labels, importance = measured
    table = sensitivity.measure(network, layers, importance, x, labels, batch_size=7)
    for index, ratio in ((2, 0.5), (3, 0.3), (4, 0.1), (10, 0.4)):
        scores = []
        for label in range(4):
            kept = [torch.ones(layer.kernels, dtype=torch.bool) for layer in layers]
            first = importance[index][label].argsort(descending=True, stable=True)
            kept[index] = torch.zeros(layers[index].kernels, dtype=torch.bool)
            kept[index][first[: max(1, int(ratio * len(first)))]] = True
            with torch.no_grad():
                scores.append(extract(network, layers, kept)(x)[:, label])
        right = (torch.stack(scores, 1).argmax(1) == labels).double().mean()
        assert table[index, sensitivity.RATIOS.index(ratio)].item() == pytest.approx(right.item())


def test_incecnn_is_split_into_modules():
    torch.manual_seed(2)
    pixels = torch.randint(0, 256, (24, 3, 12, 12), dtype=torch.uint8)
    images = Images(pixels, torch.arange(24) % 4)
    data = Data(images, images, images, ("a", "b", "c", "d"))
    network = small_incecnn().eval()
    modules = split_into_modules(network, data, method=GradientSearch(epochs=2, head=False, alpha=5.0))
    assert list(modules.kept) == [f"conv_{index}.0" for index in range(12)]
    composed = modules.composed(network, data.example)
    masks = list(modules.kept.values())
    layers = find_layers(network, data.example)
    with torch.no_grad():
        logits = masked_logits(network, layers, masks, data.example).diagonal(dim1=0, dim2=2)
    torch.testing.assert_close(composed(data.example), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 2], ids=["images", "height"])
def test_maps_that_are_concatenated_otherwise_are_refused(axis):
    class Otherwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = conv(3, 4), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            return self.two(torch.cat([y, y + 1], axis)).mean((2, 3))

    with pytest.raises(UserError, match="cannot be split: (cat|add) mixes channels"):
        find_layers(Otherwise().eval(), X.float())
