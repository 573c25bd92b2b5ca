"""What the last layer reads of a data set, and the epochs of batches of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from deeppatch.cache import ContentCache
from deeppatch.data.dataset import Data
from deeppatch.data.views import augmented
from deeppatch.decomposition.features import Features, LastLayer, ShuffledFeatures
from deeppatch.errors import UserError
from deeppatch.features import penultimate


@pytest.fixture
def data(images) -> Data:
    parts = (images.take(part) for part in (torch.arange(40), torch.arange(40, 50), torch.arange(50, 60)))
    return Data(*parts, classes=tuple("abcde"))


@pytest.mark.parametrize("kept", [True, False])
def test_features_are_those_of_each_part_with_its_labels(tiny, data, tmp_path, kept):
    last = LastLayer(tiny, data, cache=ContentCache(tmp_path) if kept else None)
    assert (last.name, last.layer) == ("network.fc", tiny.network.fc)
    for part in ("train", "val", "test"):
        found, images = last.features(part), getattr(data, part)
        assert torch.equal(found.values, penultimate(tiny, images.pixels))
        assert torch.equal(found.labels, images.labels)
    everything = last.training_features()
    assert everything.labels.tolist() == [*data.train.labels.tolist(), *data.val.labels.tolist()]
    assert len(everything) == 50


def test_augmented_features_are_those_of_images_that_are_cropped_once(tiny, data):
    found = LastLayer(tiny, data).features("train", augment_seed=7)
    assert torch.equal(found.values, penultimate(tiny, augmented(data.train, 7, mirror=False).pixels))
    turned = LastLayer(tiny, dataclasses.replace(data, mirror=True)).features("train", augment_seed=7)
    assert not torch.equal(found.values, turned.values)


def test_a_network_for_another_number_of_classes_is_refused(tiny, data):
    with pytest.raises(UserError, match="the network has 5 classes, the data have 2"):
        LastLayer(tiny, dataclasses.replace(data, classes=("a", "b"))).features("val")


def order(seed: int, epoch: int, batch_size: int = 16, scale: float = 1) -> list[int]:
    """The images of an epoch as they are read; labels must stay with their values."""
    features = Features(scale * torch.arange(60.0).view(60, 1), torch.arange(60))
    batches = ShuffledFeatures(features, batch_size, seed, epoch)
    assert len(read := list(batches)) == len(batches) == -(-60 // batch_size)
    assert all(len(labels) == batch_size for _, labels in read[:-1])
    values, labels = (torch.cat(parts) for parts in zip(*read, strict=True))
    assert torch.equal(values[:, 0], scale * labels)
    return labels.tolist()


@pytest.mark.parametrize("batch_size", [1, 16, 20, 60, 100])
def test_every_image_is_read_once(batch_size):
    assert sorted(order(7, 0, batch_size)) == list(range(60))


def test_the_order_depends_on_seed_and_epoch_only():
    torch.manual_seed(1)
    first = order(7, 0)
    torch.manual_seed(2)
    assert order(7, 0) == order(7, 0, batch_size=9) == order(7, 0, scale=2) == first
    assert len({tuple(order(seed, epoch)) for seed in (7, 8) for epoch in (0, 1)} | {tuple(range(60))}) == 5
