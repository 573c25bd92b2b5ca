from __future__ import annotations

import pytest
import torch

from deeppatch.data.dirichlet import dirichlet_subset
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.runtime import numpy_generator


def test_classes_have_the_shares_of_a_dirichlet_sample_over_its_largest():
    labels = torch.arange(800) % 8
    images = Images(torch.arange(800).view(-1, 1, 1, 1).expand(-1, 3, 1, 1), labels)
    found = dirichlet_subset(images, 5, alpha=0.5, at_least=10)
    shares = numpy_generator(5, "dirichlet").dirichlet([0.5] * 8)
    expected = [max(10, round(100 * share / max(shares))) for share in shares]
    assert torch.bincount(found.labels, minlength=8).tolist() == expected
    assert min(expected) < 30 < max(expected) == 100, "unequal, and all of the most frequent class"
    places = found.pixels[:, 0, 0, 0]
    assert torch.equal(places, places.sort().values)
    assert torch.equal(labels[places], found.labels)
    assert len(places.unique()) == len(places)
    same, other = dirichlet_subset(images, 5), dirichlet_subset(images, 6)
    assert torch.equal(same.pixels, found.pixels)
    assert len(other) != len(found)
    with pytest.raises(UserError, match="alpha"):
        dirichlet_subset(images, 5, alpha=0)
