"""The networks of the published repositories: keys, shapes, parameters and what they compute."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.errors import WrongWeights
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.incecnn import InceCNN
from deeppatch.zoo.key_names import COUNTER, match
from deeppatch.zoo.published_names import RENAMINGS
from deeppatch.zoo.rescnn import rescnn
from deeppatch.zoo.simcnn import SimCNN
from deeppatch.zoo.weights import load_network

# the network of the zoo that each published one is
OURS = {
    "hybridrepair_mobilenet": "mobilenet", "hybridrepair_resnet18": "resnet18_imagenet_stem",
    "hybridrepair_shufflenetg2": "shufflenet_g2", "hybridrepair_shufflenetg2_43": "shufflenet_g2",
    "cnnsplitter_simcnn": "simcnn", "cnnsplitter_rescnn": "rescnn", "cnnsplitter_simcnn_weak": "simcnn_weak",
    "cnnsplitter_rescnn_weak": "rescnn_weak", "cnnsplitter_simcnn_svhn_weak": "simcnn_svhn_weak",
    "cnnsplitter_rescnn_svhn_weak": "rescnn_svhn_weak", "cnnsplitter_simcnn_poorfit": "simcnn_poorfit",
    "cnnsplitter_rescnn_poorfit": "rescnn_poorfit", "gradsplitter_incecnn": "incecnn",
}  # fmt: skip
NORM = ("weight", "bias", "running_mean", "running_var", COUNTER)


class Filled:
    """What stands for a published network while a fingerprint is written into its state dict."""

    def __init__(self, shapes: list) -> None:
        self.state = {
            key: torch.zeros(shape, dtype=torch.int64 if key.endswith(COUNTER) else torch.float64)
            for key, shape in shapes
        }

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.state = state


@pytest.fixture
def published(shared) -> dict[str, dict]:
    """The facts of each published network: keys and shapes in order, parameters, logits of a fixed pattern."""
    return json.loads((shared / "zoo" / "published_networks.json").read_text())


@pytest.fixture
def fingerprint(shared) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fingerprint", shared / "zoo" / "fingerprint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.realdata
@pytest.mark.parametrize("name", OURS)
def test_published_weights_load_and_mean_the_same(published, fingerprint, name):
    want = published[name]
    state = fingerprint.fill(Filled(want["state"])).state
    network = ARCHITECTURES[OURS[name]](want["classes"]).double().eval()
    load_network(network, state, name)
    with torch.no_grad():
        logits = network(fingerprint.images())
    torch.testing.assert_close(logits, torch.tensor(want["logits"], dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert logits.std() > 1e-3
    unused = sum(value.numel() for key, value in state.items() if key.startswith("conv_3.")) if "svhn" in name else 0
    assert sum(each.numel() for each in network.parameters()) + unused == want["parameters"]


@pytest.mark.realdata
def test_every_published_network_is_one_of_the_zoo(published):
    assert published.keys() == OURS.keys()


# --- the names of published checkpoints, without the published facts


def norm(name: str) -> list[str]:
    return [f"{name}.{part}" for part in NORM]


def affine(*names: str) -> list[str]:
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


def mobilenet_names() -> list[str]:
    names = ["conv1.weight", *norm("bn1")]
    for block in range(13):
        for part in (1, 2):
            names += [f"layers.{block}.conv{part}.weight", *norm(f"layers.{block}.bn{part}")]
    return [*names, *affine("linear")]


def shufflenet_names() -> list[str]:
    names = ["conv1.weight", *norm("bn1")]
    for stage, units in ((1, 4), (2, 8), (3, 4)):
        for place in [f"layer{stage}.{unit}" for unit in range(units)]:
            for part in (1, 2, 3):
                names += [f"{place}.conv{part}.weight", *norm(f"{place}.bn{part}")]
    return [*names, *affine("linear")]


def normalised_names(convs: int, *rest: str) -> list[str]:
    return [key for i in range(convs) for key in (*affine(f"conv_{i}.0"), *norm(f"conv_{i}.1"))] + affine(*rest)


PUBLISHED_NAMES = {
    "mobilenet": mobilenet_names(),
    "shufflenet_g2": shufflenet_names(),
    "simcnn_weak": affine("conv_0", "conv_1", "conv_2", "conv_3", "fc_4"),
    "simcnn_svhn_weak": affine("conv_0", "conv_1", "fc_2"),
    "simcnn_bn": normalised_names(13, "fc_13", "fc_14", "fc_15"),
    "rescnn_bn": normalised_names(12, "fc_12"),
    "rescnn_poorfit": affine(*(f"conv_{i}.0" for i in range(12)), "classifier.1"),
    "rescnn_svhn_weak": affine("conv_0.0", "conv_1.0", "conv_2.0", "classifier.1"),
    "incecnn": normalised_names(12, "fc_12"),
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_published_names_and_ours_are_one_to_one_in_the_same_order(name, prefix):
    with torch.device("meta"):
        own = ARCHITECTURES[name](10).state_dict()
    theirs = [prefix + each for each in PUBLISHED_NAMES[name]]
    state = dict(zip(theirs, own.values(), strict=True))
    (found,) = match(state, own)
    assert found.exact
    assert not found.ignored
    assert found.names == dict(zip(own, theirs, strict=True))
    (ours,) = match(own, own)
    assert ours.names == {key: key for key in own}


@pytest.mark.parametrize("name", RENAMINGS)
def test_no_name_of_ours_is_taken_for_a_published_one(name):
    """A file that the zoo has written must not lose tensors: its names are read as they are."""
    with torch.device("meta"):
        own = ARCHITECTURES[name](10).state_dict()
    (found,) = match(own, own)
    assert (found.names, found.ignored) == ({key: key for key in own}, [])


def test_a_layer_that_the_published_network_never_reads_is_ignored_by_name(caplog):
    network = ARCHITECTURES["rescnn_svhn_weak"](5)
    state = {key.replace("classifier.2", "classifier.1"): value + 1 for key, value in network.state_dict().items()}
    state |= {"conv_3.0.weight": torch.rand(8, 8, 5, 5), "conv_3.0.bias": torch.rand(8)}
    with caplog.at_level("INFO", "deeppatch"):
        load_network(network, state, "weak.pth")
    assert "weak.pth: ignored beside the network: conv_3.0.weight, conv_3.0.bias" in caplog.text
    assert torch.equal(network.state_dict()["classifier.2.bias"], state["classifier.1.bias"])
    with pytest.raises(WrongWeights, match="is for another network"):
        load_network(network, {**state, "conv_4.0.weight": torch.rand(8, 8, 5, 5)}, "weak.pth")
    with pytest.raises(WrongWeights, match="it fits rescnn_svhn_weak"):  # where the convolution is read
        load_network(ARCHITECTURES["rescnn_weak"](5), state, "weak.pth")


# --- GradSplitter's variants with batch normalisation: counted by hand


def shapes(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in network.parameters() if parameter.ndim > 1]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_simcnn_with_batch_normalisation_has_its_shapes_and_parameters():
    with torch.device("meta"):
        network = ARCHITECTURES["simcnn_bn"](10)
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convs = [(outputs, inputs, 3, 3) for inputs, outputs in zip(widths, widths[1:], strict=False)]
    assert shapes(network) == [*convs, (4096, 512), (4096, 4096), (10, 4096)]
    convolutions = sum(9 * inputs * outputs + outputs for outputs, inputs, _, _ in convs)
    linear = 512 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 10 + 10
    assert parameters(network) == convolutions + 2 * sum(widths[1:]) + linear == 33_646_666
    assert [each.p for each in network.modules() if isinstance(each, nn.Dropout)] == [0.5]


def test_rescnn_with_batch_normalisation_has_its_shapes_and_parameters():
    with torch.device("meta"):
        network = ARCHITECTURES["rescnn_bn"](10)
    widths = [3, 64, 128, 128, 128, 256, 512, 512, 512, 512, 512, 512, 512]
    convs = [(outputs, inputs, 3, 3) for inputs, outputs in zip(widths, widths[1:], strict=False)]
    assert shapes(network) == [*convs, (10, 512)]
    convolutions = sum(9 * inputs * outputs + outputs for outputs, inputs, _, _ in convs)
    assert parameters(network) == convolutions + 2 * sum(widths[1:]) + 512 * 10 + 10 == 16_018_698
    assert [each.p for each in network.modules() if isinstance(each, nn.Dropout)] == [0.5]


def test_normalisation_stands_between_convolution_and_relu(lively):
    """The variants compute the plain networks on convolutions into which the normalisations are folded."""
    torch.manual_seed(3)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    for build in (SimCNN, rescnn):
        normed, plain = lively(build(7, 0.125, norm=True)).double(), build(7, 0.125).double().eval()
        state = {}
        for key, value in normed.state_dict().items():
            block, _, part = key.partition(".")
            if not block.startswith("conv_"):
                state[key] = value
            elif part in ("0.weight", "0.bias"):
                norm = normed.get_submodule(block)[1]
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                folded = value * scale.view(-1, *[1] * (value.ndim - 1))
                folded = folded if part == "0.weight" else folded + norm.bias - scale * norm.running_mean
                state[f"{block}.{part.removeprefix('0.') if build is SimCNN else part}"] = folded
        plain.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(normed(x), plain(x), rtol=1e-9, atol=1e-9)


# --- what the new networks compute, written out


def test_incecnn_is_its_definition(lively):
    torch.manual_seed(4)
    network = lively(InceCNN(7, width=1 / 16)).double()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)

    def block(index: int, x: Tensor) -> Tensor:
        conv, norm = network.get_submodule(f"conv_{index}")[:2]
        y = F.conv2d(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)
        y = (y - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt()
        return (y * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).clamp(min=0)

    with torch.no_grad():
        y = block(2, block(1, block(0, x)))
        for first in (3, 6, 9):
            y = F.max_pool2d(y, 2)
            y = torch.cat([block(first + branch, y) for branch in range(3)], 1)
        y = F.linear(y.mean((2, 3)), network.fc_12.weight, network.fc_12.bias)
        torch.testing.assert_close(network(x), y, rtol=1e-9, atol=1e-9)
