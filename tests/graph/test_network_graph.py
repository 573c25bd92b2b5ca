"""The network as a graph: the same answers, folded; and edits of one channel against whole passes with a hook."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deeppatch
from deeppatch.artifacts import state_digest
from deeppatch.graph.hooks import convolutions
from deeppatch.graph.network_graph import Graph
from deeppatch.graph.tracing import Untraceable
from deeppatch.localization.ablation import CorrectCounts, DegradedBatch, count_correct, graph_ablation, hook_ablation
from deeppatch.localization.channel_delta import ChannelDelta, Downstream
from deeppatch.zoo.architectures import ARCHITECTURES

# but for width, dropout, depth or normalisation these are simcnn_x0_25, rescnn_x0_25 and resnet32a
SAME = {
    "simcnn", "simcnn_poorfit", "simcnn_x0_125", "rescnn", "rescnn_poorfit", "resnet20", "resnet32", "resnet32a",
    "resnet44a", "resnet56a", "resnet110a", "simcnn_bn", "rescnn_bn",
}  # fmt: skip
SMALL = sorted(ARCHITECTURES.keys() - {"resnet50"} - SAME)
# one network of each family; the others repeat their operations
FAMILIES = {"resnet8", "resnet20a", "mobilenetv2_x0_5", "shufflenetv2_x1_0", "simcnn_x0_25", "rescnn_x0_25"}


class Concatenating(nn.Module):
    """Dense connections, a split, grouped and depthwise convolutions, padding of channels, functional operations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(4, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(14, 14, 3, padding=1, groups=14)
        self.depthnorm = nn.BatchNorm2d(14)
        self.grouped = nn.Conv2d(14, 14, 1, groups=2)
        self.reflect = nn.Conv2d(14, 10, 3, padding=1, padding_mode="reflect")
        self.late = nn.BatchNorm2d(14)
        self.last = nn.Conv2d(14, 9, 1)
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)), inplace=True)
        left, right = x.chunk(2, dim=1)
        x = torch.cat([self.branch(left).relu(), right, left], 1)
        x = F.relu6(self.depthnorm(self.depthwise(x)))
        x = self.grouped(x)
        y = self.reflect(F.max_pool2d(x, 2))
        y = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        y = self.late(y) * 0.5
        z = self.last(y + F.avg_pool2d(x, 4))
        z += 1.0
        return self.head(torch.sigmoid(z).mean((2, 3)))


class Branching(nn.Module):
    """Its path depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean((2, 3))
        return y if y.sum() > 0 else -y


class Twice(nn.Module):
    """One layer that runs at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x))).mean((2, 3))


class Writing(nn.Module):
    """It changes a tensor in place without using what the call returns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.mul_(3)
        return y.mean((2, 3))


@pytest.fixture
def network_and_sample(lively):
    """Make a network by name and seed, and three images for it."""

    def make(name: str, seed: int) -> tuple[nn.Module, DegradedBatch]:
        torch.manual_seed(seed)
        network = Concatenating() if name == "concatenating" else ARCHITECTURES[name](5)
        degraded, clean = torch.rand(2, 3, 3, 32, 32)
        return lively(network), DegradedBatch(degraded, torch.arange(3), clean)

    return make


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["resnet8", "resnet20a", "concatenating"])
def test_right_answers_are_as_many_as_by_whole_passes(network_and_sample, name, seed, swap):
    network, _ = network_and_sample(name, seed)
    degraded, clean = torch.rand(2, 8, 3, 32, 32)
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        head.bias -= network(degraded).mean(0)  # otherwise one class wins everywhere
        sample = DegradedBatch(degraded, network(clean).argmax(1), clean)
    filters = {layer: range(0, conv.out_channels, 8) for layer, conv in convolutions(network).items()}
    fast, plain = (
        count_correct([sample], filters, ablation, CorrectCounts())
        for ablation in (graph_ablation(Graph(network, degraded), swap=swap), hook_ablation(network, swap=swap))
    )
    assert fast.unedited == plain.unedited
    apart = [abs(a - b) for layer in filters for a, b in zip(fast.correct[layer], plain.correct[layer], strict=True)]
    assert sum(apart) <= 1, "but for a tie that rounding decides"
    assert len({right for row in plain.correct.values() for right in row}) > 1, "the case says nothing"


@pytest.mark.parametrize(
    ("name", "swap"),
    [
        *((name, swap) for name in [*sorted(FAMILIES), "concatenating"] for swap in (False, True)),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in SMALL if name not in FAMILIES),
    ],
)
def test_edits_give_the_logits_of_a_whole_pass(network_and_sample, name, swap):
    network, sample = network_and_sample(name, seed=len(name))
    with torch.inference_mode():
        fast, plain = (
            graph_ablation(Graph(network, sample.degraded), swap=swap)(sample),
            hook_ablation(network, swap=swap)(sample),
        )
        unedited = plain(None, 0)
        torch.testing.assert_close(fast(None, 0), unedited, rtol=1e-4, atol=1e-5)
        moved = 0
        for layer, conv in convolutions(network).items():
            for channel in {0, conv.out_channels // 2, conv.out_channels - 1}:
                want = plain(layer, channel)
                torch.testing.assert_close(fast(layer, channel), want, rtol=1e-4, atol=1e-5, msg=f"{layer} {channel}")
                moved += not torch.equal(want, unedited)
        assert moved > len(convolutions(network)), "the edits change nothing"


def test_every_channel_of_a_network_with_odd_steps(network_and_sample):
    network, sample = network_and_sample("concatenating", seed=3)
    with torch.inference_mode():
        fast, plain = (
            graph_ablation(Graph(network, sample.degraded), swap=True)(sample),
            hook_ablation(network, swap=True)(sample),
        )
        for layer, conv in convolutions(network).items():
            for channel in range(conv.out_channels):
                torch.testing.assert_close(fast(layer, channel), plain(layer, channel), rtol=1e-4, atol=1e-5)


def test_the_network_is_left_as_it_was(network_and_sample):
    network, sample = network_and_sample("resnet8", seed=1)
    before, kinds = state_digest(network.state_dict()), [type(module) for module in network.modules()]
    graph = Graph(network, sample.degraded)
    with torch.inference_mode():
        graph_ablation(graph, swap=False, dtype=torch.bfloat16)(sample)("conv1", 0)
    assert state_digest(network.state_dict()) == before
    assert [type(module) for module in network.modules()] == kinds
    assert all(module.inplace for module in network.modules() if isinstance(module, nn.ReLU))


def test_normalisation_is_folded_and_silence_is_a_constant(network_and_sample):
    network, sample = network_and_sample("resnet8", seed=2)
    graph = Graph(network, sample.degraded)
    assert not [node for node in graph.nodes if node.op == "call_module" and "bn" in str(node.target)]
    for name, norm in (("conv1", network.bn1), ("layer1.0.conv2", network.layer1[0].bn2)):
        want = norm(torch.zeros(1, norm.num_features, 1, 1)).flatten()
        torch.testing.assert_close(graph.silenced[name], want)
    network, sample = network_and_sample("concatenating", seed=2)
    assert Graph(network, sample.degraded).silenced["branch"].count_nonzero() == 0, "nothing follows but its ReLU"


def test_unedited_values_survive_the_edits(network_and_sample):
    network, sample = network_and_sample("concatenating", seed=4)
    graph = Graph(network, sample.degraded)
    with torch.inference_mode():
        base = graph.run(sample.degraded)
        before = {node: value.clone() for node, value in base.items() if isinstance(value, Tensor)}
        for node in graph.convs.values():
            Downstream(graph, node).run(ChannelDelta(1, torch.zeros_like(base[node][:, :1])), base)
        assert all(torch.equal(base[node], value) for node, value in before.items())


def test_an_edit_that_changes_nothing_gives_the_same_logits(network_and_sample):
    network, sample = network_and_sample("resnet20a", seed=5)
    graph = Graph(network, sample.degraded)
    with torch.inference_mode():
        base = graph.run(sample.degraded)
        for node in graph.convs.values():
            logits = Downstream(graph, node).run(ChannelDelta(0, base[node][:, :1]), base)
            torch.testing.assert_close(logits, base[graph.output], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "why"),
    [(Branching(), "depends on values"), (Twice(), "runs conv more than once"), (Writing(), "computes something else")],
)
def test_what_cannot_be_run_as_a_graph_says_why(network, why):
    with pytest.raises(Untraceable, match=why) as refusal:
        Graph(network, torch.rand(2, 3, 8, 8))
    assert "\n" not in str(refusal.value)


def test_costs_count_the_convolutions_behind_a_layer(network_and_sample):
    network, sample = network_and_sample("resnet8", seed=6)
    costs = Graph(network, sample.degraded).costs()
    assert costs["conv1"] == 9
    assert costs["layer3.0.conv2"] == 1
    assert list(costs) == list(convolutions(network))


PEAK = """
import torch
from pathlib import Path
from deeppatch.localization.ablation import DegradedBatch, graph_ablation
from deeppatch.graph.network_graph import Graph
from deeppatch.zoo.architectures import ARCHITECTURES
def peak():  # of this process alone: the kernel's other count, ru_maxrss, begins with its parent's
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
network = ARCHITECTURES["resnet20a"](10).eval()
graph = Graph(network, torch.rand(2, 3, 32, 32))
sample = DegradedBatch(torch.rand(100, 3, 32, 32), torch.zeros(100))
before = peak()
with torch.inference_mode():
    edited = graph_ablation(graph, swap=False)(sample)
    for name in graph.convs:
        edited(name, 0)
print((peak() - before) / 100 / graph.bytes_per_image(sample.degraded[:2]))
"""


def test_the_bytes_of_an_image_are_its_maps_and_an_edit_on_its_way():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    floats = 3 * 64 + 4 * 64 + 4 * 64 + 4 + 2  # flattening shares memory with the pooling
    want = 4 * (floats + 5 * 4 * 64)
    assert Graph(network, torch.rand(2, 3, 8, 8)).bytes_per_image(torch.rand(2, 3, 8, 8)) == want


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from there")
def test_edits_take_no_more_memory_than_that():
    path = str(Path(deeppatch.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", PEAK], env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert 0.5 < float(done.stdout) < 1.4, "1.0 to 1.15 on Linux, as memory is given back or kept"
