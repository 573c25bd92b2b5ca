"""Influence against a plain loop over images, and how equal features are put in order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.decomposition.features import Features
from deeppatch.decomposition.head import decompose
from deeppatch.decomposition.influence import Influence, influence, measure
from deeppatch.errors import UserError

CLASSES, WIDTH = 4, 9
KS = [1, 2, 5, 9]


def plain(features: Features, label: int, k: int) -> tuple[list[float], list[float], float]:
    """The oracle: frequency and share of each feature and the mass, for one class, image by image."""
    images = [row for row, own in zip(features.values.tolist(), features.labels.tolist(), strict=True) if own == label]
    frequency, share, mass = [0.0] * WIDTH, [0.0] * WIDTH, 0.0
    for row in images:
        parts = [value / sum(row) if sum(row) else 0.0 for value in row]
        strongest = sorted(range(WIDTH), key=lambda place: (-row[place], place))[:k]
        mass += sum(parts[place] for place in strongest) / len(images)
        for place in range(WIDTH):
            frequency[place] += (place in strongest) / len(images)
            share[place] += parts[place] / len(images)
    return frequency, share, mass


def made(kind: str) -> Features:
    """Ninety-one images of four classes, of different numbers of images each, with responses of one kind."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 10, (91,), generator=draw).clamp(max=CLASSES - 1)
    values = torch.randn(91, WIDTH, generator=draw).relu()
    if kind == "ties":
        values = (2 * values).round()
    if kind == "zeros":
        values[::3] = 0
    if kind == "tiny":
        values *= 1e-30
    return Features(values, labels)


def given(*images: list[float]) -> Features:
    """Images of a single class."""
    return Features(torch.tensor(images, dtype=torch.float32), torch.zeros(len(images), dtype=torch.int64))


def close(found: Tensor, want: object) -> None:
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["all different", "ties", "zeros", "tiny"])
def test_influence_is_that_of_a_loop_over_images(kind):
    features = made(kind)
    found = measure(features, CLASSES, KS)
    assert [each.k for each in found] == KS
    for each in found:
        for label in range(CLASSES):
            frequency, share, mass = plain(features, label, each.k)
            close(each.frequency[label], frequency)
            close(each.share[label], share)
            close(each.mass[label], mass)
        assert each.indices().shape == (CLASSES, each.k)


@pytest.mark.parametrize("k", KS)
def test_indices_are_the_most_frequent_features(k):
    features = made("all different")
    found = measure(features, CLASSES, [k])[0].indices()
    assert found.dtype == torch.int64
    for label in range(CLASSES):
        frequency, share, _ = plain(features, label, k)
        order = sorted(range(WIDTH), key=lambda place: (-round(frequency[place], 9), -share[place], place))
        assert found[label].tolist() == order[:k]


@pytest.mark.parametrize("k", KS)
def test_the_table_has_a_row_for_each_class_and_feature(k):
    found = measure(made("all different"), CLASSES, [k])[0]
    table = found.table(["cat", "dog", "owl", "elk"])
    rows = iter(table.itertuples(index=False, name=None))
    for label, name in enumerate(["cat", "dog", "owl", "elk"]):
        chosen = found.indices()[label].tolist()
        for feature in range(WIDTH):
            rank = chosen.index(feature) + 1 if feature in chosen else 0
            frequency, share = found.frequency[label, feature].item(), found.share[label, feature].item()
            assert next(rows) == (name, feature, frequency, share, rank)
    assert list(table.columns) == ["class", "feature", "frequency", "mean_share", "rank"]
    assert len(table) == CLASSES * WIDTH


@pytest.mark.parametrize("kind", ["all different", "ties", "zeros"])
def test_several_ks_at_once_equal_one_at_a_time(kind):
    features = made(kind)
    for together in measure(features, CLASSES, KS):
        alone = measure(features, CLASSES, [together.k])[0]
        for name in ("frequency", "share", "mass"):
            assert torch.equal(getattr(together, name), getattr(alone, name)), name
        assert torch.equal(together.indices(), alone.indices())


def test_more_images_than_one_count_for_a_class_alone():
    features = made("all different")
    alone = Features(features.values[features.labels == 2], torch.zeros(int((features.labels == 2).sum()), dtype=int))
    whole, part = measure(features, CLASSES, [3])[0], measure(alone, 1, [3])[0]
    assert torch.equal(whole.frequency[2:3], part.frequency)
    assert torch.equal(whole.share[2:3], part.share)


def test_an_image_s_scale_changes_nothing():
    features = made("all different")
    scaled = Features(features.values * 2.0 ** torch.arange(-45, 46).view(-1, 1), features.labels)
    one, other = (measure(each, CLASSES, [3])[0] for each in (features, scaled))
    assert torch.equal(one.frequency, other.frequency)
    torch.testing.assert_close(one.share, other.share, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("k", "want"),
    [
        (1, [2]),  # 0 and 2 in one image each: 2 has the larger share
        (2, [1, 2]),  # 1 in both images, its tie with 3 going by index
        (3, [2, 1, 0]),
        (4, [2, 0, 1, 3]),  # all in both images: by share
        (5, [2, 0, 1, 3, 4]),
    ],
)
def test_equally_frequent_features_go_by_share(k, want):
    features = given([8, 4, 2, 2, 0], [0, 2, 12, 2, 0])
    assert measure(features, 1, [k])[0].indices().tolist() == [want]


@pytest.mark.parametrize(
    ("images", "k", "want"),
    [
        ([[1, 1, 1, 1, 1]], 2, [0, 1]),
        ([[0, 4, 4, 4, 4]], 3, [1, 2, 3]),
        ([[0, 8, 0, 4, 4], [0, 4, 0, 8, 4]], 1, [1]),
        ([[0, 4, 0, 8, 4], [0, 8, 0, 4, 4]], 2, [1, 3]),
        ([[0, 0, 0, 0, 8], [0, 0, 0, 8, 0]], 2, [0, 3]),  # a zero is chosen too where k asks for more
    ],
)
def test_features_of_equal_frequency_and_share_go_by_index(images, k, want):
    assert measure(given(*images), 1, [k])[0].indices().tolist() == [want]


def test_an_image_without_any_response_has_no_shares():
    found: Influence = measure(given([0, 0, 0], [1, 0, 3]), 1, [2])[0]
    assert found.share.tolist() == [[0.125, 0, 0.375]]
    assert found.frequency.tolist() == [[1, 0.5, 0.5]]
    assert found.mass.tolist() == [0.5]


def test_mass_is_what_the_strongest_hold():
    found = measure(given([6, 2, 1, 1], [1, 1, 1, 1]), 1, [1, 2, 3, 4])
    close(torch.cat([each.mass for each in found]), [0.425, 0.65, 0.825, 1])


def test_frequencies_add_up_to_k():
    for found in measure(made("ties"), CLASSES, KS):
        close(found.frequency.sum(1), [found.k] * CLASSES)


@pytest.mark.parametrize("ks", [[0], [-1], [3, WIDTH + 1]])
def test_a_number_of_features_that_is_not_there_is_refused(ks):
    with pytest.raises(UserError, match=f"reads {WIDTH} features; give 1 to {WIDTH}"):
        measure(made("ties"), CLASSES, ks)


def test_a_class_without_an_image_is_named():
    features = made("ties")
    features.labels[features.labels == 1] = 0
    with pytest.raises(UserError, match="class 1 has no training image"):
        measure(features, CLASSES, [2])


def test_a_network_of_one_s_own_is_decomposed_in_two_calls():
    """Images of 20x14 pixels, a network with a hidden linear layer, in train mode."""
    torch.manual_seed(4)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveMaxPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(16, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3),
    )  # fmt: skip
    pixels = torch.randint(0, 256, (30, 3, 20, 14), dtype=torch.uint8)
    images = Images(pixels, torch.arange(30) % 3)
    data = Data(images, images, images, ("a", "b", "c"))
    with torch.no_grad():
        features = network[:6](pixels.float() / 255)
    found = influence(network.train(), data, k=4, batch_size=7)
    want = measure(Features(features.repeat(2, 1), images.labels.repeat(2)), 3, [4])[0]
    torch.testing.assert_close(found.share, want.share, rtol=1e-5, atol=1e-7)
    sparse = decompose(network, data, found.indices())
    assert sparse[6].weight.shape == (3, 4)
    assert network.training
    assert sparse(pixels.float() / 255).shape == (30, 3)
