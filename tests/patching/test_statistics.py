"""Statistics that are estimated again on other images, against plain sums over batches."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deeppatch.artifacts import state_digest
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.patching.attachment import attach
from deeppatch.patching.patch_file import Patch, extract
from deeppatch.patching.statistics import reestimate_statistics
from deeppatch.runtime import generator


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2),
    )  # fmt: skip


def patch_of(model: nn.Module, kind: str = "replace", layer: str = "0") -> Patch:
    own = copy.deepcopy(model).eval()
    attachment = attach(own, {layer: [0, 2]}, kind, torch.rand(2, 3, 9, 9))
    with torch.no_grad():
        for unit in attachment.units.values():
            for value in unit.new_parameters().values():
                if value.is_floating_point():
                    value.add_(0.3 * torch.rand(value.shape))
    return extract(attachment, state_digest(model.state_dict()), about={"classes": ["a", "b"]})


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(31, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def test_the_statistics_are_means_over_batches_of_means_and_unbiased_variances(pixels):
    model = network()
    patch = patch_of(model)
    found = reestimate_statistics(model, patch, pixels, batch_size=10, seed=5)
    order = torch.randperm(31, generator=generator(5, "statistics"))
    conv, second = copy.deepcopy(model[0]), model[3]
    with torch.no_grad():
        conv.weight[[0, 2]] = patch.tensors["units/0/rows"]
        conv.bias[[0, 2]] = 0
        sums: dict[str, list[torch.Tensor]] = {"1": [], "4": []}
        for index in order.tensor_split(3):  # each layer reads what the batch's own statistics have normalised
            x = pixels[index]
            for name, each in (("1", conv), ("4", second)):
                x = each(x)
                sums[name].append(torch.stack([x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)]))
                mean, biased = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
                x = ((x - mean) / (biased + 1e-5).sqrt()).relu()
    for name, rows in sums.items():
        mean, variance = torch.stack(rows).mean(0)
        torch.testing.assert_close(found.tensors[f"norms/{name}/running_mean"], mean)
        torch.testing.assert_close(found.tensors[f"norms/{name}/running_var"], variance)
        assert found.tensors[f"norms/{name}/num_batches_tracked"] == 3


@pytest.mark.parametrize("kind", ["replace", "crtunit"])
def test_what_comes_out_is_a_patch_file_as_any_other(pixels, kind):
    model = network()
    patch = patch_of(model, kind)
    content, state = patch.to_bytes(), state_digest(model.state_dict())
    found = reestimate_statistics(model, patch, Images((255 * pixels).byte(), torch.zeros(31, dtype=torch.long)))
    assert (patch.to_bytes(), state_digest(model.state_dict())) == (content, state)
    assert reestimate_statistics(model, patch, (255 * pixels).byte()).to_bytes() == found.to_bytes()
    again = Patch.from_bytes(found.to_bytes())
    assert again.tensors.keys() == patch.tensors.keys()
    changed = {key for key, value in again.tensors.items() if not torch.equal(value, patch.tensors[key])}
    assert changed == {key for key in patch.tensors if key.endswith(("_mean", "_var", "_tracked"))}
    assert again.about == {"classes": ["a", "b"], "statistics": {"images": 31, "batches": 1}}
    patched = again.apply(model, pixels[:2])
    with torch.no_grad():
        alone = torch.cat([patched(pixels[i : i + 1]) for i in range(31)])
        torch.testing.assert_close(patched(pixels), alone)


def test_what_both_networks_share_keeps_its_statistics(pixels):
    model = network()
    found = reestimate_statistics(model, patch_of(model, layer="3"), pixels)
    assert {key.split("/")[1] for key in found.tensors if key.startswith("norms/")} == {"4"}


def test_too_few_images_and_networks_without_statistics_are_told(pixels):
    model = network()
    with pytest.raises(UserError, match="1 unlabelled images: statistics need at least two"):
        reestimate_statistics(model, patch_of(model), pixels[:1])
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(UserError, match="no batch normalisation runs behind this patch"):
        reestimate_statistics(plain, patch_of(plain), pixels)
