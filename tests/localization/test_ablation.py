"""Filter scores against slow, plain versions of their definitions."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.artifacts import state_digest
from deeppatch.graph.hooks import convolutions
from deeppatch.graph.network_graph import Graph
from deeppatch.localization.ablation import CorrectCounts, DegradedBatch, count_correct, graph_ablation, hook_ablation

SEEDS = [0, 1, 2]


def idle(_given: object) -> None:
    """Take a tick."""


@pytest.fixture(params=["graph", "hooks"])
def score(request) -> Callable[..., dict[str, list[float]]]:
    """Score every filter by a method, with the fast engine or with the plain one."""

    def scored(
        method: str, network: nn.Module, samples: list[DegradedBatch], counts: CorrectCounts | None = None,
        keep: Callable[[CorrectCounts], object] = idle, tick: Callable[[str], object] = idle,
    ) -> dict[str, list[float]]:  # fmt: skip
        swap = method == "featswap"
        if request.param == "graph":
            ablation = graph_ablation(Graph(network, samples[0].degraded), swap=swap)
        else:
            ablation = hook_ablation(network, swap=swap)
        filters = {name: range(conv.out_channels) for name, conv in convolutions(network).items()}
        return count_correct(samples, filters, ablation, counts or CorrectCounts(), save=keep, tick=tick).scores(
            1 if swap else -1
        )

    return scored


def hooks(network: nn.Module) -> int:
    """Count the hooks that stand in a network."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


@pytest.fixture(params=SEEDS)
def case(request, tiny, images, blur) -> tuple[nn.Module, list[DegradedBatch]]:
    """A network with weights of its own and unequal batches, which it gets right where they are clean."""
    torch.manual_seed(request.param)
    for module in tiny.network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=1.5 / module.weight[0].numel() ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.3)
    pixels = images.pixels.float() / 255
    degraded = blur(pixels, 1)  # random pixels that are blurred further all look alike
    with torch.no_grad():
        clean, degraded = tiny.normalize(pixels), tiny.normalize(degraded)
        logits = tiny.network(clean)
        tiny.network.fc.bias -= logits.mean(0)  # otherwise one class wins everywhere
        labels = tiny.network(clean).argmax(1)
    parts = zip(degraded.split([25, 25, 10]), labels.split([25, 25, 10]), clean.split([25, 25, 10]), strict=True)
    return tiny.network, [DegradedBatch(*part) for part in parts]


def share_right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


def joined(samples: list[DegradedBatch]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.cat([getattr(s, key) for s in samples]) for key in ("degraded", "clean", "labels"))


@torch.no_grad()
def plain_perfloss(network: nn.Module, samples: list[DegradedBatch]) -> dict[str, list[float]]:
    """Zero a filter's weights and bias in a copy, and count again."""
    degraded, _, labels = joined(samples)
    before = share_right(network(degraded), labels)
    scores = {}
    for name in ("conv1", "conv2", "conv3"):
        scores[name] = []
        for channel in range(network.get_submodule(name).out_channels):
            masked = copy.deepcopy(network)
            conv = masked.get_submodule(name)
            conv.weight[channel] = 0
            if conv.bias is not None:
                conv.bias[channel] = 0
            scores[name].append(before - share_right(masked(degraded), labels))
    return scores


def cut(network: nn.Module, x: Tensor, layer: str = "", channel: int = 0, given: Tensor | None = None):
    """Run the tiny network by hand, one layer's channel given; return logits and every convolution's output."""
    outputs = {}

    def convolve(name: str, x: Tensor) -> Tensor:
        conv = network.get_submodule(name)
        y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
        if name == layer:
            y = torch.stack([given if c == channel else y[:, c] for c in range(y.shape[1])], 1)
        outputs[name] = y
        return y

    x = F.relu(network.bn1(convolve("conv1", x)))
    x = F.relu(network.bn2(convolve("conv2", x)) + x)
    return network.fc(F.relu(convolve("conv3", x)).mean((2, 3))), outputs


@torch.no_grad()
def plain_featswap(network: nn.Module, samples: list[DegradedBatch]) -> dict[str, list[float]]:
    """Recompute the network behind every filter whose output comes from the clean images."""
    degraded, clean, labels = joined(samples)
    before = share_right(cut(network, degraded)[0], labels)
    swapped_in = cut(network, clean)[1]
    return {
        name: [
            share_right(cut(network, degraded, name, channel, y[:, channel])[0], labels) - before
            for channel in range(y.shape[1])
        ]
        for name, y in swapped_in.items()
    }


METHODS = {"perfloss": plain_perfloss, "featswap": plain_featswap}


@pytest.mark.parametrize("method", METHODS)
def test_scores_equal_those_of_the_definition(case, score, method):
    network, samples = case
    expected = METHODS[method](network, samples)
    found = score(method, network, samples)
    assert list(found) == ["conv1", "conv2", "conv3"]
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-12), name
    assert len({round(value, 6) for values in expected.values() for value in values}) > 5, "the case says nothing"


@pytest.mark.parametrize("method", METHODS)
def test_batches_ticks_and_weights(case, method, score):
    network, samples = case
    before, ticks = state_digest(network.state_dict()), []
    found = score(method, network, samples, tick=ticks.append)
    assert Counter(ticks) == {name: width * len(samples) for name, width in (("conv1", 8), ("conv2", 8), ("conv3", 12))}
    assert state_digest(network.state_dict()) == before
    degraded, clean, labels = joined(samples)
    whole = score(method, network, [DegradedBatch(degraded, labels, clean)])
    assert whole == found, "scores depend on how the images are batched"
    assert all(abs(60 * value - round(60 * value)) < 1e-9 for value in found["conv1"])


@pytest.mark.parametrize("method", METHODS)
def test_a_network_in_training_mode_is_scored_in_eval_mode(case, method, score):
    network, samples = case
    expected = score(method, network.eval(), samples)
    before = state_digest(network.state_dict())
    assert score(method, network.train(), samples) == expected
    assert state_digest(network.state_dict()) == before, "batch statistics moved"


@pytest.mark.parametrize("method", METHODS)
def test_resumed_scores_equal_those_of_one_run(case, score, method):
    network, samples = case
    kept: list[CorrectCounts] = []
    whole = score(method, network, samples, keep=lambda counts: kept.append(copy.deepcopy(counts)))
    assert len(kept) == 28 * len(samples), "every filter of every batch"
    for place in (0, 7, 27, 28, 40, 83):
        ticks: list[str] = []
        found = score(method, network, samples, counts=CorrectCounts(**asdict(kept[place])), tick=ticks.append)
        assert found == whole
        assert len(ticks) == 84 - place - 1, "what is counted is not counted again"


class Stumbles(nn.Module):
    """A last layer that fails at its nth pass."""

    def __init__(self, last: nn.Module, passes: int) -> None:
        super().__init__()
        self.last, self.left = last, passes

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("stumbled")
        return self.last(x)


@pytest.mark.parametrize("method", METHODS)
def test_no_hook_survives(case, score, method):
    network, samples = case
    assert hooks(network) == 0
    score(method, network, samples)
    assert hooks(network) == 0, "after success"

    def full(_given: object) -> None:
        raise OSError("disk full")

    for place in ("keep", "tick"):
        with pytest.raises(OSError, match="disk full"):
            score(method, network, samples, **{place: full})
        assert hooks(network) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("passes", [0, 1, 5, 20, 40])
def test_no_hook_survives_a_network_that_fails(case, method, passes):
    network, samples = case
    network.fc = Stumbles(network.fc, passes)
    ablation = hook_ablation(network, swap=method == "featswap")
    with pytest.raises(RuntimeError, match="stumbled"):
        count_correct(samples, {"conv1": range(8), "conv2": range(8), "conv3": range(12)}, ablation, CorrectCounts())
    assert hooks(network) == 0


def test_featswap_needs_clean_images(case, score):
    network, samples = case
    with pytest.raises(ValueError, match="clean"):
        score("featswap", network, [DegradedBatch(s.degraded, s.labels) for s in samples])
    assert hooks(network) == 0


class Means(nn.Module):
    """Two 1x1 filters whose means are the logits: channel c reads input channel c, plus a bias."""

    def __init__(self, bias: list[float]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(2).view(2, 2, 1, 1))
            self.conv.bias.copy_(torch.tensor(bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


def constant(red: float, green: float, count: int) -> Tensor:
    return torch.tensor([float(red), float(green)]).view(1, 2, 1, 1).expand(count, 2, 3, 3).contiguous()


def test_perfloss_is_negative_where_silence_helps(score):
    # logits 1 and 5, class 0 is right three times of four: without channel 1 those three become right, the fourth wrong
    samples = [
        DegradedBatch(constant(0, 0, 3), torch.tensor([0, 0, 0])),
        DegradedBatch(constant(0, 0, 1), torch.tensor([1])),
    ]
    scores = score("perfloss", Means([1.0, 5.0]), samples)
    assert scores == {"conv": [0.0, 0.25 - 0.75]}


def test_perfloss_is_positive_where_silence_hurts(score):
    samples = [DegradedBatch(constant(0, 0, 4), torch.tensor([1, 1, 1, 0]))]
    scores = score("perfloss", Means([1.0, 5.0]), samples)
    assert scores == {"conv": [0.0, 0.75 - 0.25]}


def test_featswap_is_positive_where_the_clean_map_helps(score):
    # clean (1, 0) is class 0; degraded (1, 2) is taken for class 1, and channel 1 is to blame
    labels = torch.tensor([0, 0, 0, 1])
    samples = [DegradedBatch(constant(1, 2, 4), labels, constant(1, 0, 4))]
    scores = score("featswap", Means([0.0, 0.0]), samples)
    assert scores == {"conv": [0.0, 0.75 - 0.25]}
    # the other way round it hurts
    samples = [DegradedBatch(constant(1, 0, 4), labels, constant(1, 2, 4))]
    assert score("featswap", Means([0.0, 0.0]), samples) == {"conv": [0.0, 0.25 - 0.75]}


class Grouped(nn.Module):
    """A separable convolution between two ordinary ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.halves = nn.Conv2d(4, 4, 1, groups=2)
        self.pointwise = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(F.relu(self.halves(self.depthwise(F.relu(self.first(x)))))).mean((2, 3))


@pytest.mark.parametrize("method", METHODS)
def test_grouped_convolutions_are_left_out(method, score):
    torch.manual_seed(0)
    x = torch.rand(5, 3, 8, 8)
    found = score(method, Grouped(), [DegradedBatch(x, torch.arange(5), x.flip(0))])
    assert {name: len(values) for name, values in found.items()} == {"first": 4, "pointwise": 6}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_inplace_relu_behind_a_convolution_does_not_spoil_scores(method, seed, slope, score):
    """The layer's output is overwritten right behind it; scores are those of the same network without in-place.

    A ReLU of what has been through a ReLU is the same; a leaky one tells whether that has happened.
    """
    torch.manual_seed(seed)
    relu = partial(nn.LeakyReLU, slope)
    layers = [nn.Conv2d(3, 6, 3), relu(inplace=True), nn.Conv2d(6, 6, 3), relu(inplace=True)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    clean, degraded = torch.randn(2, 80, 3, 9, 9)
    with torch.no_grad():
        network[-1].bias -= network(clean).mean(0)
        labels = network(clean).argmax(1)
    samples = [DegradedBatch(degraded, labels, clean)]
    found = score(method, network, samples)

    apart = copy.deepcopy(network)
    apart[1], apart[3] = relu(), relu()
    with torch.no_grad():
        before = share_right(apart(degraded), labels)
        for name in ("0", "2"):
            place = int(name)
            y, y_clean = apart[: place + 1](degraded), apart[: place + 1](clean)
            expected = []
            for channel in range(6):
                edited = y.clone()
                edited[:, channel] = 0 if method == "perfloss" else y_clean[:, channel]
                after = share_right(apart[place + 1 :](edited), labels)
                expected.append(before - after if method == "perfloss" else after - before)
            assert found[name] == pytest.approx(expected, abs=1e-12)
            assert len(set(expected)) > 2, "the case says nothing"


def test_featswap_with_the_clean_images_for_degraded_ones_scores_nothing(case, score):
    network, samples = case
    same = [DegradedBatch(s.clean, s.labels, s.clean) for s in samples]
    found = score("featswap", network, same)
    assert all(value == 0 for values in found.values() for value in values)
