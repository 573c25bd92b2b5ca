"""Streams of degraded images: every image once at each level, by seed, and correlated where classes are ordered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeppatch.data import corruptions, views
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.data.images import Images
from deeppatch.data.streams import SMALLEST_CHUNK, STREAMS, choose_images, ordered_chunks, stream
from deeppatch.errors import UserError


@pytest.fixture
def hundred() -> Images:
    """One hundred random images of 8x8 pixels in four classes."""
    draw = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (100, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return Images(pixels, torch.arange(100) % 4)


BLUR = GaussianBlur((1.0, 2.0, 3.0))


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_has_every_image_once_at_each_level(name, hundred):
    found = stream(name, hundred, BLUR, batch_size=30, single=8, seed=1)
    pairs = [pair for part in found.parts for pair in zip(part.index.tolist(), part.levels.tolist(), strict=True)]
    numbers = choose_images(hundred, 8, 1).tolist() if name == "single" else range(100)
    assert sorted(pairs) == sorted((number, level) for number in numbers for level in (1, 2, 3))
    assert len(found) == len(pairs)
    assert len(found.parts) == (1 if name == "mixed" else 3)
    assert found.resets == (name in ("reset", "single"))
    assert found.smallest_batch == {"single": 1, "mixed": 30}.get(name, 10)
    assert all(part.index.tolist() != sorted(part.index.tolist()) for part in found.parts), "shuffled"


def test_images_are_degraded_as_where_networks_are_measured(hundred):
    noise = corruptions.corruption("gaussian_noise", severity="5")
    (part,) = stream("mixed", hundred, noise, batch_size=30).parts
    expected = torch.cat([pixels for pixels, _ in views.levels_view(hundred, noise, [1], 100)])
    found = torch.cat([pixels for pixels, _ in part])
    assert torch.equal(found, expected[part.index])
    assert torch.equal(torch.cat([labels for _, labels in part]), hundred.labels[part.index])


def test_orders_are_of_the_seed_and_those_of_reset_are_those_of_continual(hundred):
    def orders(name, seed):
        return [part.index.tolist() for part in stream(name, hundred, BLUR, seed=seed).parts]

    for name in STREAMS:
        assert orders(name, 1) == orders(name, 1)
        assert orders(name, 1) != orders(name, 2)
    assert orders("reset", 1) == orders("continual", 1)
    assert orders("reset", 1)[0] != orders("reset", 1)[1], "each level has an order of its own"


def test_levels_may_be_chosen_and_clean_is_one(hundred):
    found = stream("continual", hundred, BLUR, levels=[0, 2])
    assert [int(part.levels[0]) for part in found.parts] == [0, 2] == list(found.levels)
    pixels = torch.cat([pixels for pixels, _ in found.parts[0]])
    assert torch.equal(pixels, hundred.pixels[found.parts[0].index] / 255)


def test_the_fifteen_types_come_in_the_order_of_the_protocol():
    names = corruptions.corruption("all", severity="5").level_names
    assert [name.removesuffix("-5") for name in names] == [
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
        "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_ordered_chunks_are_a_permutation_of_correlated_classes(seed):
    labels = np.repeat(np.arange(5), 24)[np.random.default_rng(seed).permutation(120)]
    chunks = ordered_chunks(labels, np.random.default_rng(seed))
    assert len(chunks) == 5
    assert sorted(np.concatenate(chunks).tolist()) == list(range(120))
    assert min(map(len, chunks)) >= SMALLEST_CHUNK
    for chunk in chunks:
        runs = 1 + np.count_nonzero(np.diff(labels[chunk]))
        assert runs == len(set(labels[chunk])), "all images of a class together"
    order = labels[np.concatenate(chunks)]
    same = (order[1:] == order[:-1]).mean()
    assert same > 0.75, "of shuffled neighbours a fifth would be of one class"
    # shares of a class in the chunks: a Dirichlet distribution of 0.1 gives most to one
    largest = [max((labels[chunk] == label).sum() for chunk in chunks) / 24 for label in range(5)]
    assert np.mean(largest) > 0.5


def test_the_images_of_a_class_are_divided_at_random():
    labels = np.arange(100) % 2
    found = [ordered_chunks(labels, np.random.default_rng(seed)) for seed in range(3)]
    for label in (0, 1):
        orders = [[i for chunk in chunks for i in chunk if labels[i] == label] for chunks in found]
        assert all(order != sorted(order) for order in orders)
        assert orders[0] != orders[1]


def test_equal_shares_correlate_less():
    labels = np.arange(400) % 4
    largest = {}
    for concentration in (0.1, 100.0):
        chunks = ordered_chunks(labels, np.random.default_rng(1), concentration=concentration)
        largest[concentration] = np.mean([max((labels[each] == k).mean() for k in range(4)) for each in chunks])
    assert largest[100.0] < 0.4 < 0.5 < largest[0.1]


def test_mistakes_are_one_line(hundred):
    with pytest.raises(UserError, match="choose from reset, continual, mixed, ordered, single"):
        stream("sorted", hundred, BLUR)
    with pytest.raises(UserError, match=r"level 4: this degradation has levels 0 \(clean\) to 3"):
        stream("reset", hundred, BLUR, levels=[4])
    few = hundred.take(torch.arange(39))
    with pytest.raises(UserError, match="39 images of 4 classes are too few .* give 80 for each degradation"):
        stream("ordered", few, BLUR)


def test_chosen_images_are_stratified_or_drawn_where_they_cannot_hold_every_class(hundred):
    chosen = choose_images(hundred, 40, 3)
    assert torch.bincount(hundred.labels[chosen]).tolist() == [10] * 4
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(choose_images(hundred, 200, 3)) == 100
    few = choose_images(hundred, 3, 3)
    assert len(set(few.tolist())) == 3
