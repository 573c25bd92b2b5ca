"""Running statistics estimated again, against means and variances computed layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeppatch.artifacts import state_digest
from deeppatch.errors import UserError
from deeppatch.graph.statistics import STATISTICS, batch_norms, reestimate


@pytest.fixture
def batches(images):
    return [(part,) for part in (images.pixels.float() / 255).split(20)]


def plain_statistics(tiny, batches) -> dict[str, list[torch.Tensor]]:
    """Return mean and variance of both normalisations of the tiny network, written out."""
    network, found = tiny.network, {"bn1": [], "bn2": []}
    for (pixels,) in batches:
        maps = network.conv1(tiny.normalize(pixels))
        found["bn1"].append((maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=1)))
        x = torch.relu(normalised(maps, network.bn1))
        maps = network.conv2(x)
        found["bn2"].append((maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=1)))
    return {name: [torch.stack(each).mean(0) for each in zip(*rows, strict=True)] for name, rows in found.items()}


def normalised(maps, norm):
    mean, variance = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), correction=0, keepdim=True)
    scale = norm.weight.view(1, -1, 1, 1) / (variance + norm.eps).sqrt()
    return (maps - mean) * scale + norm.bias.view(1, -1, 1, 1)


@torch.no_grad()
def test_statistics_are_the_means_over_batches_of_normalised_maps(tiny, batches):
    plain = plain_statistics(tiny, batches)
    for name, norm in batch_norms(reestimate(tiny, batches).network).items():
        assert torch.allclose(norm.running_mean, plain[name][0], atol=1e-5)
        assert torch.allclose(norm.running_var, plain[name][1], rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_nothing_else_changes_and_the_model_stays(tiny, batches, training):
    tiny.network.fc = nn.Sequential(nn.Dropout(0.9), tiny.network.fc)
    tiny.train(training)
    before = state_digest(tiny.state_dict())
    found = reestimate(tiny, batches)
    assert state_digest(tiny.state_dict()) == before
    assert not any(module.training for module in found.modules())
    assert all(module.training == training for module in tiny.modules())
    moved = {name for name, value in found.state_dict().items() if not torch.equal(value, tiny.state_dict()[name])}
    assert moved == {f"network.{norm}.{name}" for norm in ("bn1", "bn2") for name in STATISTICS}
    assert {norm.momentum for norm in batch_norms(found).values()} == {0.1}, "later training has the usual momentum"


def test_the_same_images_give_the_same_bytes(tiny, batches):
    first, second = (state_digest(reestimate(tiny, batches).state_dict()) for _ in range(2))
    assert first == second


def test_a_network_without_running_statistics_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert F.relu(network(torch.rand(2, 3, 4, 4))).shape == (2, 4, 2, 2)
    with pytest.raises(UserError, match="no batch normalisation with running statistics"):
        reestimate(network, [(torch.rand(2, 3, 4, 4),)])
