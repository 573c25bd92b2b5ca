"""The patch file: what it holds, that it survives, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.errors import StaleArtifact
from deeppatch.patching.attachment import attach
from deeppatch.patching.patch_file import Patch, apply, extract
from deeppatch.patching.router import Router
from deeppatch.patching.units import UNITS
from deeppatch.zoo.classifier import Classifier

CHANNELS = {"conv1": [2, 5], "conv2": [1, 3, 6]}
ORIGIN = Path("output/patch.safetensors")
KINDS = list(UNITS)
NORM = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture
def pixels() -> Tensor:
    torch.manual_seed(8)
    return torch.rand(7, 3, 12, 12)


def trained(model: Classifier, kind: str, pixels: Tensor, channels: dict[str, list[int]] = CHANNELS) -> tuple:
    """Return a patch after three steps, and what the network that was trained answers; the model is as before."""
    torch.manual_seed(11)
    base = state_digest(model.state_dict())
    attachment = attach(model.network, channels, kind, model.normalize(pixels))
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.5, momentum=0.9)
    for _ in range(3):
        attachment.enter_training()
        optimizer.zero_grad()
        F.cross_entropy(model(torch.rand(20, 3, 12, 12)), torch.arange(20) % 5).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        logits = model(pixels)
    patch = extract(attachment, base)
    attachment.remove()
    return patch, logits


def expected_keys(kind: str) -> set[str]:
    keys = {f"channels/{name}" for name in CHANNELS} | {f"norms/{n}/{key}" for n in ("bn1", "bn2") for key in NORM}
    for name in CHANNELS:
        if kind == "replace":
            keys.add(f"units/{name}/rows")
        else:
            keys |= {f"units/{name}/unit.{conv}.weight" for conv in (0, 3, 6, 9)}
            keys |= {f"units/{name}/unit.{norm}.{key}" for norm in (1, 4, 7) for key in ("weight", "bias", *NORM)}
    return keys


@pytest.mark.parametrize("kind", KINDS)
def test_file_holds_the_patch_and_nothing_of_the_base(tiny, pixels, kind):
    patch, _ = trained(tiny, kind, pixels)
    tensors, meta = tensors_from_bytes(patch.to_bytes(), ORIGIN)
    assert set(tensors) == expected_keys(kind)
    assert meta == {"kind": kind, "base": state_digest(tiny.state_dict())}
    if kind == "replace":
        assert tensors["units/conv1/rows"].shape == (2, 3, 3, 3)
        assert tensors["units/conv2/rows"].shape == (3, 8, 3, 3)
    weights = {key: value for key, value in tiny.state_dict().items() if value.is_floating_point()}
    assert not [
        (k, w) for k, v in tensors.items() for w, b in weights.items() if v.shape == b.shape and torch.equal(v, b)
    ]


def test_file_is_small():
    """A quarter of the filters costs about a quarter of the convolutions' weights, however large the rest is."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(4096, 100)).eval()
    rows = 16 * 3 * 9 + 16 * 64 * 9
    attachment = attach(network, {"0": list(range(16)), "3": list(range(16))}, "replace", torch.rand(2, 3, 12, 12))
    content = extract(attachment, "0" * 64).to_bytes()
    assert len(content) == pytest.approx(4 * (rows + 2 * 64) + 8 * 33, abs=1500)


@pytest.mark.parametrize("kind", KINDS)
def test_patch_survives_its_bytes(tiny, pixels, kind):
    patch, logits = trained(tiny, kind, pixels)
    again = Patch.from_bytes(patch.to_bytes(), ORIGIN)
    assert (again.kind, again.base, again.channels) == (kind, patch.base, CHANNELS)
    assert again.tensors.keys() == patch.tensors.keys()
    assert all(torch.equal(value, patch.tensors[key]) for key, value in again.tensors.items())
    assert all(value.dtype == patch.tensors[key].dtype for key, value in again.tensors.items())
    assert again.to_bytes() == patch.to_bytes()
    apply(tiny, again, pixels)
    with torch.no_grad():
        torch.testing.assert_close(tiny(pixels), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_applied_patch_equals_what_was_trained_and_goes_without_a_trace(tiny, pixels, kind):
    with torch.no_grad():
        before = tiny(pixels)
    digest = state_digest(tiny.state_dict())
    patch, logits = trained(tiny, kind, pixels)
    assert (logits - before).abs().max() > 1e-3, "the case says nothing"
    attachment = apply(tiny.train(), patch, pixels)
    assert not tiny.network.training
    with torch.no_grad():
        torch.testing.assert_close(tiny(pixels), logits, rtol=1e-5, atol=1e-5)
    attachment.remove()
    tiny.eval()
    with torch.no_grad():
        assert torch.equal(tiny(pixels), before)
    assert state_digest(tiny.state_dict()) == digest


@pytest.mark.parametrize("kind", KINDS)
def test_same_training_gives_the_same_bytes(tiny, pixels, kind):
    first, second = (trained(tiny, kind, pixels)[0].to_bytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("kind", KINDS)
def test_extracted_patch_does_not_move_with_further_training(tiny, pixels, kind):
    attachment = attach(tiny.network, CHANNELS, kind, tiny.normalize(pixels))
    patch = extract(attachment, "0" * 64)
    before = patch.to_bytes()
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter.add_(1)
        attachment.enter_training()
        tiny(pixels)
    assert patch.to_bytes() == before
    assert extract(attachment, "0" * 64).to_bytes() != before


def test_norms_of_the_file_are_those_behind_the_first_patched_convolution(tiny, pixels):
    patch, _ = trained(tiny, "replace", pixels, {"conv2": [0]})
    assert set(patch.tensors) == {"units/conv2/rows", *(f"norms/bn2/{key}" for key in NORM)}
    patch, _ = trained(tiny, "replace", pixels, {"conv3": [0]})
    assert set(patch.tensors) == {"units/conv3/rows"}


@pytest.mark.parametrize("change", ["weight", "statistic", "normalisation", "patched"])
def test_another_base_is_refused_and_left_alone(tiny, pixels, change):
    patch, _ = trained(tiny, "replace", pixels)
    with torch.no_grad():
        if change == "weight":
            tiny.network.fc.bias[0] += 1e-6
        elif change == "statistic":
            tiny.network.bn1.running_mean[0] += 1e-6
        elif change == "normalisation":
            tiny.normalize.mean[0] += 1e-6
        else:
            apply(tiny, patch, pixels)
    before = state_digest(tiny.state_dict())
    with pytest.raises(StaleArtifact, match="base"):
        apply(tiny, patch, pixels)
    assert state_digest(tiny.state_dict()) == before


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_cut_file_is_refused(tiny, pixels, cut):
    content = trained(tiny, "replace", pixels)[0].to_bytes()
    with pytest.raises(StaleArtifact, match="patch.safetensors"):
        Patch.from_bytes(content[:cut], ORIGIN)


def test_file_of_another_kind_is_refused(tiny):
    for content in (
        b"no tensors at all, but a line of text",
        tensors_to_bytes(tiny.state_dict()),
        Router("flips", torch.ones(1), 0.0, 0.5).to_bytes(),
    ):
        with pytest.raises(StaleArtifact, match="patch.safetensors"):
            Patch.from_bytes(content, ORIGIN)


DAMAGES = {
    "a tensor is missing": lambda tensors: tensors.pop("units/conv1/rows"),
    "a statistic is missing": lambda tensors: tensors.pop("norms/bn2/running_var"),
    "a shape can be broadcast": lambda tensors: tensors.update({"units/conv1/rows": torch.zeros(2, 1, 1, 1)}),
    "a layer is unknown": lambda tensors: tensors.update({"channels/conv9": torch.tensor([0])}),
    "a tensor is surplus": lambda tensors: tensors.update({"units/conv3/rows": torch.zeros(1, 8, 3, 3)}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_patch_whose_keys_or_shapes_do_not_fit_is_refused(tiny, pixels, damage):
    patch, _ = trained(tiny, "replace", pixels)
    tensors, meta = tensors_from_bytes(patch.to_bytes(), ORIGIN)
    DAMAGES[damage](tensors)
    with pytest.raises(StaleArtifact):
        apply(tiny, Patch.from_bytes(tensors_to_bytes(tensors, meta), ORIGIN), pixels)


def test_patch_of_an_unknown_kind_is_refused(tiny, pixels):
    patch, _ = trained(tiny, "replace", pixels)
    tensors, meta = tensors_from_bytes(patch.to_bytes(), ORIGIN)
    with pytest.raises(StaleArtifact):
        apply(tiny, Patch.from_bytes(tensors_to_bytes(tensors, {**meta, "kind": "unheard-of"}), ORIGIN), pixels)


def test_what_a_patch_says_about_itself_survives(tiny, pixels):
    patch, _ = trained(tiny, "replace", pixels)
    described = dataclasses.replace(patch, about={"classes": ["a", "b"], "image_size": [12, 12], "std": [0.5]})
    again = Patch.from_bytes(described.to_bytes(), ORIGIN)
    assert again.about == described.about
    assert Patch.from_bytes(patch.to_bytes(), ORIGIN).about == {}
    meta = {"kind": "replace", "base": patch.base, "about": ["a"]}
    with pytest.raises(StaleArtifact, match="its metadata is not of this version's form"):
        Patch.from_bytes(tensors_to_bytes(patch.tensors, meta), ORIGIN)


def test_apply_returns_a_patched_copy(tiny, pixels):
    patch, logits = trained(tiny, "crtunit", pixels)
    before = state_digest(tiny.train().state_dict())
    patched = dataclasses.replace(patch, about={"image_size": [12, 12]}).apply(tiny)
    assert state_digest(tiny.state_dict()) == before
    assert all(module.training for module in tiny.modules())
    with torch.no_grad():
        torch.testing.assert_close(patched(pixels), logits)
    with pytest.raises(StaleArtifact, match="other base weights"):
        patch.apply(patched)
