"""Logits and features of a pass, kept or not, and the linear layer that a classifier ends in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from deeppatch import features
from deeppatch.artifacts import state_digest
from deeppatch.cache import ContentCache
from deeppatch.data.files import Files
from deeppatch.data.scaling import Scaling
from deeppatch.errors import UserError
from deeppatch.features import embed, last_linear, penultimate
from deeppatch.graph.hooks import eval_mode
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_logits_and_features_of_one_pass_belong_together(tiny):
    pixels = torch.randint(0, 256, (21, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = embed(tiny.train(), pixels, batch_size=8)
    assert tiny.training, "the mode is as it was"
    with torch.no_grad():
        tiny.eval()
        torch.testing.assert_close(found.logits, tiny(pixels.float() / 255))
        torch.testing.assert_close(tiny.network.fc(found.features), found.logits)
    torch.testing.assert_close(found.probabilities, found.logits.softmax(1))
    assert found.features.shape == (21, 12)
    assert hooks(tiny) == 0


# --- the layer that makes the logits

HEADS = {"mobilenetv2_x0_5": "network.classifier.1", "simcnn_weak": "network.5", "simcnn_svhn_weak": "network.3"}
HEADS |= {name: "network.classifier.2" for name in ARCHITECTURES if name.startswith("rescnn")}
SEVERAL = {name for name in ARCHITECTURES if name == "vgg13_bn" or (name.startswith("simcnn") and "weak" not in name)}
HEADS |= {"incecnn": "network.fc_12"}
FAMILIES = ["resnet8", "mobilenetv2_x0_5", "simcnn_weak", "simcnn_svhn_weak", "rescnn_weak", "mobilenet"]


def test_the_last_layer_of_each_family_is_found():
    for name in FAMILIES:
        model = Classifier(ARCHITECTURES[name](7), [0.4] * 3, [0.2] * 3)
        before = state_digest(model.state_dict())
        found, layer = last_linear(model, torch.rand(2, 3, 32, 32))
        assert found == HEADS.get(name, "network.fc"), name
        assert layer is model.get_submodule(found)
        assert layer.out_features == 7
        assert state_digest(model.state_dict()) == before
        assert hooks(model) == 0


@pytest.mark.slow
def test_the_last_layer_of_every_network_is_found():
    for name, network in ARCHITECTURES.items():
        found, layer = last_linear(network(7), torch.rand(2, 3, 32, 32))
        assert layer.out_features == 7
        assert name in SEVERAL or f"network.{found}" == HEADS.get(name, "network.fc"), name


def test_the_last_of_several_linear_layers_is_the_one():
    network = ARCHITECTURES["vgg13_bn"](7)
    name, layer = last_linear(network, torch.rand(1, 3, 32, 32))
    assert (name, layer.in_features, layer.out_features) == ("classifier.6", 512, 7)


class Twice(nn.Module):
    """Reads its linear layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x):
        return self.fc(self.fc(x))


OTHERS = {
    "a layer follows": nn.Sequential(nn.Linear(12, 5), nn.Softmax(1)),
    "changed in place": nn.Sequential(nn.Linear(12, 5), nn.LeakyReLU(inplace=True)),
    "not flat": nn.Linear(4, 5),
    "twice": Twice(),
    "no linear layer": nn.Flatten(),
}
EXAMPLES = {"not flat": (2, 3, 4), "twice": (2, 5)}


@pytest.mark.parametrize("name", OTHERS)
def test_a_network_that_does_not_end_in_a_linear_layer_is_refused(name):
    model = nn.Sequential(OTHERS[name])
    with pytest.raises(UserError, match="does not end in a linear layer that computes its logits") as error:
        last_linear(model, torch.randn(EXAMPLES.get(name, (2, 12))))
    assert "\n" not in str(error.value)
    assert ("it has no linear layer" in str(error.value)) is (name == "no linear layer")
    assert hooks(model) == 0


def test_every_module_gets_its_own_mode_back(tiny):
    tiny.train()
    tiny.network.bn1.eval()
    with eval_mode(tiny):
        assert not any(module.training for module in tiny.modules())
    assert tiny.training
    assert not tiny.network.bn1.training


# --- features that are kept


def plain(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The oracle: a whole pass over all images, with a hook on what the last layer reads."""
    found = []
    handle = model.network.fc.register_forward_hook(lambda _m, inputs, _o: found.append(inputs[0]))
    model.eval()
    with torch.no_grad():
        model(pixels.float() / 255)
    handle.remove()
    return found[0]


@pytest.fixture
def passes(tiny) -> list[int]:
    """How many images each pass through the network had, but for the one image by which the last layer is found."""
    counts: list[int] = []
    tiny.register_forward_pre_hook(lambda _m, inputs: counts.append(len(inputs[0])) if len(inputs[0]) > 1 else None)
    return counts


def shards(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def kept(model: nn.Module, pixels: torch.Tensor | Files, folder: Path, **named) -> torch.Tensor:
    return penultimate(model, pixels, cache=ContentCache(folder), **named)


@pytest.mark.parametrize("training", [True, False])
def test_features_are_what_the_last_layer_reads(tiny, images, tmp_path, training):
    want = plain(tiny, images.pixels)
    before = state_digest(tiny.state_dict())
    found = kept(tiny.train(training), images.pixels, tmp_path)
    assert torch.equal(found, want)
    assert torch.equal(penultimate(tiny, images.pixels), want)
    assert (found.dtype, found.shape) == (torch.float32, (60, 12))
    assert state_digest(tiny.state_dict()) == before, "statistics do not move"
    assert tiny.training is training
    assert not (found == 0).all(1).any()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.modules())


def test_a_smaller_batch_changes_nothing_but_rounding(tiny, images, tmp_path, passes):
    found = kept(tiny, images.pixels, tmp_path, batch_size=7)
    assert passes == [7] * 8 + [4]
    torch.testing.assert_close(found, plain(tiny, images.pixels), rtol=1e-5, atol=1e-6)


def test_a_second_call_reads_the_shard_and_runs_nothing(tiny, images, tmp_path, passes):
    folder = tmp_path / "new" / "folder"
    first = kept(tiny, images.pixels, folder)
    before = shards(folder)[0].read_bytes()
    assert torch.equal(kept(tiny, images.pixels, folder), first)
    assert passes == [60]
    assert [path.read_bytes() for path in shards(folder)] == [before]


@pytest.mark.parametrize("name", ["network.conv1.weight", "network.bn1.running_mean", "normalize.mean"])
def test_another_state_of_the_model_has_another_shard(tiny, images, tmp_path, name):
    first = kept(tiny, images.pixels, tmp_path)
    tiny.state_dict()[name].view(-1)[0].add_(1)
    found = kept(tiny, images.pixels, tmp_path)
    assert len(shards(tmp_path)) == 2
    assert torch.equal(found, plain(tiny, images.pixels))
    assert not torch.equal(found, first)


CHANGES = {
    "another image": lambda pixels: torch.cat([pixels[:-1], 255 - pixels[-1:]]),
    "another order": lambda pixels: pixels.flip(0), "fewer": lambda pixels: pixels[:-1],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_other_images_have_another_shard(tiny, images, tmp_path, change):
    kept(tiny, images.pixels, tmp_path)
    changed = change(images.pixels)
    found = kept(tiny, changed, tmp_path)
    assert len(shards(tmp_path)) == 2
    assert torch.equal(found, plain(tiny, changed))


def test_another_precision_has_another_shard(tiny, images, tmp_path):
    whole, half = (kept(tiny, images.pixels, tmp_path, amp=amp) for amp in (False, True))
    assert half.dtype == torch.float32
    assert not torch.equal(whole, half)
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.05)
    assert len(shards(tmp_path)) == 2


def test_a_damaged_shard_is_computed_again(tiny, images, tmp_path, passes):
    first = kept(tiny, images.pixels, tmp_path)
    (path,) = shards(tmp_path)
    path.write_bytes((before := path.read_bytes())[:-10])
    assert torch.equal(kept(tiny, images.pixels, tmp_path), first)
    assert passes == [60, 60]
    assert path.read_bytes() == before


def test_several_shards_are_as_good_as_one(tiny, images, tmp_path, passes, monkeypatch):
    whole = kept(tiny, images.pixels, tmp_path / "one", batch_size=8)
    monkeypatch.setattr(features, "SHARD", 16)
    folder = tmp_path / "several"
    assert torch.equal(kept(tiny, images.pixels, folder, batch_size=8), whole)
    assert len(shards(folder)) == 4
    shards(folder)[2].unlink()
    passes.clear()
    assert torch.equal(kept(tiny, images.pixels, folder, batch_size=8), whole)
    assert sum(passes) in (12, 16), "only the missing shard is computed"


def test_images_may_stay_in_files(tiny, images, tmp_path, passes):
    paths = [str(tmp_path / f"{index}.png") for index in range(60)]
    for path, pixels in zip(paths, images.pixels, strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    filed, folder = Files(paths, Scaling(12, 12, shorter=12)), tmp_path / "cache"
    assert torch.equal(kept(tiny, filed, folder), kept(tiny, images.pixels, folder))
    kept(tiny, filed, folder)
    assert passes == [60, 60]
    Image.new("RGB", (30, 30)).save(paths[5])
    torch.testing.assert_close(kept(tiny, filed, folder)[5:6], plain(tiny, torch.zeros(1, 3, 12, 12)))


def test_features_can_be_trained_on_whether_computed_or_kept(tiny, images, tmp_path):
    for _ in range(2):
        found = kept(tiny, images.pixels, tmp_path)
        head = nn.Linear(12, 5)
        F.cross_entropy(head(found), images.labels).backward()
        assert head.weight.grad.abs().sum() > 0
        assert not found.requires_grad
