from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from deeppatch.data.names import DATASET_NAMES
from deeppatch.graph.hooks import convolutions
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.entries import COMMON_STATS, ENTRIES
from deeppatch.zoo.resnet_cifar import ShortcutA
from deeppatch.zoo.weights import hash_in_name, load_network, read

# one network of each family; the others repeat their operations
FAMILIES = {"resnet8", "resnet20a", "mobilenetv2_x0_5", "shufflenetv2_x1_0", "simcnn_x0_25", "rescnn_x0_25"}
# the published counts, with 10 and with 100 classes
PARAMETERS = {
    "resnet20": (272_474, 278_324),
    "resnet32": (466_906, 472_756),
    "vgg13_bn": (9_941_322, 9_987_492),
    "mobilenetv2_x0_5": (700_490, 815_780),
    "shufflenetv2_x1_0": (1_263_854, 1_356_104),
}


@pytest.fixture
def zoo(shared) -> dict[str, dict]:
    """The published facts: state-dict keys and shapes, logits of a fixed pattern, urls, accuracies, constants."""
    return json.loads((shared / "zoo" / "zoo.json").read_text())


@pytest.fixture
def fingerprint(shared) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fingerprint", shared / "zoo" / "fingerprint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name):
    with torch.device("meta"):  # shapes without values
        assert tuple(parameters(ARCHITECTURES[name](classes)) for classes in (10, 100)) == PARAMETERS[name]


@pytest.mark.parametrize(("name", "count"), [("resnet20a", 269_722), ("resnet32a", 464_154)])
def test_parameter_free_shortcuts_have_no_parameters(name, count):
    assert parameters(ARCHITECTURES[name](10)) == count


@pytest.mark.parametrize(
    ("name", "count", "multiply_adds", "features"),
    [
        ("mobilenet", 3_217_226, 46_354_432, 1024),
        ("resnet18", 11_173_962, 555_422_720, 512),
        ("resnet18_imagenet_stem", 11_181_642, 37_016_576, 512),
        ("shufflenet_g2", 887_582, 39_614_080, 800),
    ],
)
def test_networks_that_hybridrepair_repairs_have_their_size(name, count, multiply_adds, features):
    network = ARCHITECTURES[name](10).eval()
    assert parameters(network) == count
    assert network.fc.in_features == features
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * multiply_adds


def test_shufflenet_adds_or_appends_and_lets_groups_see_each_other():
    torch.manual_seed(1)
    network = ARCHITECTURES["shufflenet_g2"](10).eval()
    x = torch.rand(1, 200, 8, 8)
    with torch.no_grad():
        assert network.layer2[0](x).shape == (1, 400, 4, 4)
        torch.testing.assert_close(network.layer2[0](x)[:, 200:], F.avg_pool2d(x, 3, 2, 1))
        half = torch.cat([torch.rand(1, 100, 8, 8), x[:, 100:]], 1)  # the first group sees other channels
        unit = network.layer1[1]
        assert ((unit(x) - unit(half))[:, 100:].abs() > 0).any(), "and the second group hears of it"


def test_resnet32_has_the_filters_that_the_paper_ranks():
    assert sum(conv.out_channels for conv in convolutions(ARCHITECTURES["resnet32"](10)).values()) == 1232


@pytest.mark.parametrize(
    "name",
    [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in sorted(ARCHITECTURES)],
)
def test_every_network_maps_small_images_to_its_classes(name):
    torch.manual_seed(0)
    network = ARCHITECTURES[name](7).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_networks_are_fresh_each_time_and_repeat_by_seed():
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(ARCHITECTURES["resnet8"](10).conv1.weight)
    assert made[0] is not made[1]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("channels", [4, 6])
def test_shortcut_a_takes_every_second_pixel_and_puts_zeros_on_either_side(channels):
    x = torch.rand(2, channels, 6, 4)
    y = ShortcutA(channels)(x)
    assert y.shape == (2, 2 * channels, 3, 2)
    half = channels // 2
    for row in range(3):
        for column in range(2):
            assert torch.equal(y[:, half : half + channels, row, column], x[:, :, 2 * row, 2 * column])
    assert y[:, :half].count_nonzero() == 0
    assert y[:, half + channels :].count_nonzero() == 0


@pytest.mark.parametrize("size", [8, 7, 1])
def test_gradients_of_shortcut_a_are_those_of_every_second_pixel_and_keep_the_memory_layout(size):
    last = torch.channels_last
    x = torch.rand(2, 4, size, size).contiguous(memory_format=last).requires_grad_()
    y = ShortcutA(4)(x)
    above = torch.rand(y.shape).contiguous(memory_format=last)
    (found,) = torch.autograd.grad(y, x, above)
    expected = torch.zeros(x.shape)
    expected[:, :, ::2, ::2] = above[:, 2:6]
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=last)
    assert y.is_contiguous(memory_format=last)


def test_every_entry_is_of_a_known_network_with_a_hash_in_its_url():
    for (dataset, model), entry in ENTRIES.items():
        assert model in ARCHITECTURES
        assert dataset in DATASET_NAMES
        assert len(hash_in_name(Path(entry.url))) == 8
        assert 50 < entry.top1 < 100
        assert (entry.mean, entry.std) in COMMON_STATS.values()
    assert len({entry.url for entry in ENTRIES.values()}) == len(ENTRIES)


@pytest.mark.realdata
@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100)])
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_network_has_the_published_keys_shapes_and_logits(zoo, fingerprint, dataset, classes, name):
    want = zoo[f"{dataset}_{name}"]
    network = fingerprint.fill(ARCHITECTURES[name](classes).double()).eval()
    assert [[key, list(value.shape)] for key, value in network.state_dict().items()] == want["state"]
    assert parameters(network) == want["parameters"]
    with torch.no_grad():
        logits = network(fingerprint.images())
    torch.testing.assert_close(logits, torch.tensor(want["logits"], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert logits.std() > 1e-3


@pytest.mark.realdata
def test_entries_are_the_published_ones(zoo):
    assert len(zoo) == 10
    for key, want in zoo.items():
        entry = ENTRIES[tuple(key.split("_", 1))]
        assert entry.url == want["url"]
        assert entry.top1 == want["top1"]
        assert list(entry.mean) == want["mean"]
        assert list(entry.std) == want["std"]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "file"), [("resnet20a", "resnet20-12fca82f.th"), ("resnet32a", "resnet32-d509ac18.th")]
)
def test_published_option_a_weights_load_whole(shared, name, file):
    assert ENTRIES["cifar10", name].url.endswith(f"/{file}")
    state = read(shared / "weights" / file)
    network = ARCHITECTURES[name](10).eval()
    load_network(network, state, file)
    own = network.state_dict()
    loaded = {key.removeprefix("module.").replace("linear.", "fc."): value for key, value in state.items()}
    assert loaded.keys() == {key for key in own if not key.endswith("num_batches_tracked")} | {
        key for key in loaded if key.endswith("num_batches_tracked")
    }
    assert all(torch.equal(own[key], value) for key, value in loaded.items())
    assert F.softmax(network(torch.rand(1, 3, 32, 32)), 1).max() > 0.11, "these are no fresh weights"
