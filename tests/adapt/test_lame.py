"""LAME against a plain definition, and what its energy does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deeppatch.adapt.lame import affinity, corrected, neighbourhood
from deeppatch.adapt.methods import adapter
from deeppatch.errors import UserError


def plain_affinity(features, neighbours=5):
    """Return the kernel image by image."""
    unit = [each / each.norm() for each in features]
    distances = [[(one - other).norm().item() for other in unit] for one in unit]
    width = sum(sorted(row)[min(neighbours, len(unit)) - 1] for row in distances) / len(unit)
    return torch.tensor([[math.exp(-(d**2) / (2 * width**2)) for d in row] for row in distances])


def energy(probabilities, kernel, share):
    """Return the energy that the paper bounds from above: with half of the quadratic term."""
    costs = -(probabilities + 1e-10).log()
    quadratic = torch.einsum("ik,ij,jk->", share, kernel, share)
    return ((costs * share).sum() + (share * share.log()).sum() - quadratic / 2).item()


def test_the_answers_are_those_of_the_definition(model, batches):
    batch = torch.cat(batches)
    with torch.no_grad():
        features = model[:-1](batch)
        probabilities = model(batch).softmax(1)
    kernel = plain_affinity(features)
    torch.testing.assert_close(affinity(features, 5), kernel, rtol=1e-4, atol=1e-5)
    share = probabilities + 1e-10
    share = share / share.sum(1, keepdim=True)
    before, energies = None, []
    for number in range(100):
        raised = [(each + 1e-10) * (row @ share).exp() for each, row in zip(probabilities, kernel, strict=True)]
        share = torch.stack([each / each.sum() for each in raised])
        costs = -(probabilities + 1e-10).log()
        found = (costs * share - (kernel @ share) * share + share * share.log()).sum().item()
        energies.append(found)
        if number > 1 and abs(found - before) <= 1e-8 * abs(before):
            break
        before = found
    assert 3 < len(energies) <= 100
    torch.testing.assert_close(adapter("lame", model).predict(batch).exp(), share, rtol=1e-3, atol=1e-4)
    assert (share.argmax(1) != probabilities.argmax(1)).any(), "answers change, or the test shows nothing"


def test_the_kernel_of_the_paper_is_the_nearest_neighbours(model, batches):
    batch = torch.cat(batches)
    with torch.no_grad():
        features = model[:-1](batch)
        probabilities = model(batch).softmax(1)
    unit = features / features.norm(dim=1, keepdim=True)
    expected = torch.zeros(27, 27)
    for row in range(27):
        others = sorted((other for other in range(27) if other != row), key=lambda o: (unit[row] - unit[o]).norm())
        expected[row, others[:5]] = 1
    assert torch.equal(neighbourhood(features, 5), expected)
    found = adapter("lame-knn", model).predict(batch)
    torch.testing.assert_close(found, corrected(probabilities, expected))
    assert not torch.allclose(found, adapter("lame", model).predict(batch))
    assert neighbourhood(features[:1], 5).tolist() == [[0]], "one image has no neighbour"


def test_without_affinity_it_is_the_source():
    probabilities = torch.rand(20, 5, generator=torch.Generator().manual_seed(1)).mul(6).softmax(1)
    torch.testing.assert_close(corrected(probabilities, torch.zeros(20, 20)).exp(), probabilities)


@pytest.mark.parametrize("seed", range(4))
def test_the_energy_never_rises(seed):
    draw = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(30, 6, generator=draw, dtype=torch.float64).mul(2).softmax(1)
    kernel = affinity(torch.randn(30, 4, generator=draw, dtype=torch.float64), 5)
    found = [energy(probabilities, kernel, corrected(probabilities, kernel, most=most).exp()) for most in range(1, 40)]
    assert all(later <= earlier + 1e-9 for earlier, later in zip(found, found[1:], strict=False))
    assert found[-1] < found[0] - 1e-3


def test_one_image_keeps_its_answer_and_equal_features_do_not_divide_by_zero(model, batches):
    lame = adapter("lame", model)
    for batch in (batches[0][:1], batches[0][:1].expand(7, -1, -1, -1)):
        found = lame.predict(batch)
        assert found.isfinite().all()
        with torch.no_grad():
            assert torch.equal(found.argmax(1), model(batch).argmax(1))


def test_a_network_without_a_linear_head_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="does not end in a linear layer"):
        adapter("lame", network).predict(torch.rand(3, 3, 8, 8))
