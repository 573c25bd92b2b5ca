from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deeppatch.data import biased_split
from deeppatch.data.files import Files
from deeppatch.data.scaling import Scaling
from deeppatch.data.sources import Images, Source, load
from deeppatch.data.splits import split
from deeppatch.errors import DataProblem, StaleArtifact

# the published biased training sets, and what each part of CIFAR-10 holds of each class
BIASED = {
    "A": [1138, 1136, 1174, 1119, 1113, 1047, 1151, 1164, 1098, 1110],
    "B": [1496, 161, 1515, 1487, 1436, 1037, 1070, 1494, 942, 612],
    "C": [1290, 1391, 19, 1143, 1353, 1162, 1328, 891, 1404, 1269],
}
PARTS = {
    "train slice": [1502, 1484, 1543, 1510, 1507, 1426, 1533, 1514, 1522, 1459],
    "val slice": [487, 497, 499, 501, 502, 499, 505, 513, 490, 507],
    "test": [502, 537, 473, 511, 481, 486, 499, 503, 495, 513],
    "pool": [3509, 3482, 3485, 3478, 3510, 3589, 3463, 3470, 3493, 3521],
}


def source(name: str, train: int, test: int, classes: int = 10, *, shuffled: bool = True) -> Source:
    """A source of images of one pixel that tells their place, in random order or sorted by class."""
    labels = torch.cat([torch.arange(count) * classes // count for count in (train, test)])
    if shuffled:
        labels = labels[torch.randperm(train + test, generator=torch.Generator().manual_seed(1))]
    pixels = (torch.arange(train + test) % 251).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, -1, -1)
    whole = Images(pixels, labels)
    parts = (whole.take(torch.arange(train)), whole.take(torch.arange(train, train + test)))
    return Source(name, *parts, tuple(map(str, range(classes))))


def lists(parts: biased_split.Partition) -> list[Tensor]:
    return [parts.train, parts.val, parts.test, parts.pool]


def sizes(parts: biased_split.Partition) -> list[int]:
    return [len(part) for part in lists(parts)]


@pytest.mark.parametrize(
    ("name", "train", "test", "classes", "expected"),
    [
        ("cifar10", 50_000, 10_000, 10, [11_250, 3_750, 5_000, 35_000]),
        ("svhn", 73_257, 26_032, 10, [3_750, 3_750, 10_000, 79_289]),
        ("gtsrb", 26_640, 12_630, 43, [2_250, 1_875, 5_000, 29_270]),
        ("digits", 1_437, 360, 10, [336, 111, 149, 1_050]),
    ],
)
def test_parts_have_the_published_sizes_and_share_no_image(name, train, test, classes, expected):
    for bias in biased_split.BIASES:
        parts = biased_split.partition(source(name, train, test, classes), bias, 2021)
        assert sizes(parts) == expected
        everything = torch.cat(lists(parts))
        assert len(everything.unique()) == len(everything), "no image twice"
        assert 0 <= everything.min() <= everything.max() < train + test


def test_cifar10_and_svhn_are_cut_in_the_order_of_the_library():
    parts = biased_split.partition(source("cifar10", 50_000, 10_000), "A", 2021)
    assert parts.order == "library order"
    assert parts.train.max() < 15_000
    assert 15_000 <= parts.val.min() <= parts.val.max() < 20_000
    assert torch.equal(parts.test, torch.arange(20_000, 25_000))
    assert torch.equal(parts.pool, torch.arange(25_000, 60_000))
    assert biased_split.partition(source("svhn", 73_257, 26_032), "A", 2021).order == "library order"


@pytest.mark.parametrize(("name", "shuffled"), [("gtsrb", True), ("digits", True), ("cifar10", False)])
def test_other_sources_and_those_sorted_by_class_are_permuted_by_seed_within_their_parts(name, shuffled):
    whole = source(name, 50_000, 10_000, shuffled=shuffled)
    parts, again, other = (biased_split.partition(whole, "A", seed) for seed in (1, 1, 2))
    assert parts.order == "seeded permutation"
    counts = torch.bincount(biased_split.combined(whole).labels[parts.test], minlength=10)
    assert (counts > 0).all(), "a part of images sorted by class would hold few classes"
    assert torch.cat([parts.train, parts.val, parts.test]).max() < 50_000, "the test part is all in the pool"
    assert all(map(torch.equal, lists(parts), lists(again)))
    assert not torch.equal(parts.test, other.test)


def test_a_draw_repeats_by_seed_and_differs_between_seeds_and_biases():
    whole = source("cifar10", 50_000, 10_000)
    first, again, other = (biased_split.partition(whole, "B", seed) for seed in (1, 1, 2))
    assert torch.equal(first.train, again.train)
    assert not torch.equal(first.train, other.train)
    assert torch.equal(first.pool, other.pool)
    assert not torch.equal(first.train, biased_split.partition(whole, "C", 1).train)


def test_a_bias_makes_classes_rare_and_a_has_none():
    whole = source("cifar10", 50_000, 10_000)
    labels = biased_split.combined(whole).labels
    for bias, expected in BIASED.items():
        found = torch.bincount(labels[biased_split.partition(whole, bias, 5).train], minlength=10)
        assert found.sum() == 11_250
        # class slices have 1,500 images each here, up to 43 more or fewer in CIFAR-10
        assert (found - torch.tensor(expected)).abs().max() < 120, bias


def test_weights_of_other_numbers_of_classes_are_fixed_draws():
    assert biased_split.class_weights("A", 7).tolist() == [1] * 7
    assert torch.equal(biased_split.class_weights("B", 7), biased_split.class_weights("B", 7))
    assert not torch.equal(biased_split.class_weights("B", 7), biased_split.class_weights("C", 7))
    assert (biased_split.class_weights("C", 1000) > 0).all(), "every class can be drawn"
    for classes, tables in biased_split.WEIGHTS.items():
        assert {bias: len(row) for bias, row in tables.items()} == {"B": classes, "C": classes}
        assert all(0 < weight < 1 for row in tables.values() for weight in row)


def test_a_limit_takes_a_random_subset_of_each_part_without_a_look_at_labels():
    whole = source("cifar10", 50_000, 10_000)
    full, limited = (biased_split.partition(whole, "B", 2021, limit) for limit in (None, 1_000))
    assert sizes(limited) == [1_000] * 4
    for part, kept in zip(lists(full), lists(limited), strict=True):
        assert torch.isin(kept, part).all()
        assert torch.equal(kept, kept.sort().values)
    relabelled = Source(whole.name, whole.train, Images(whole.test.pixels, whole.test.labels.flip(0)), whole.classes)
    assert torch.equal(biased_split.partition(relabelled, "B", 2021, 1_000).pool, limited.pool)


def test_a_partition_survives_being_written(tmp_path):
    parts = biased_split.partition(source("digits", 1_437, 360), "C", 7)
    read = biased_split.partition_from_bytes(parts.to_bytes(bias="C"), tmp_path)
    assert all(map(torch.equal, lists(read), lists(parts)))
    assert read.order == parts.order
    assert parts.to_bytes(bias="C") == parts.to_bytes(bias="C")
    with pytest.raises(StaleArtifact):
        biased_split.partition_from_bytes(parts.to_bytes()[:-9], tmp_path)


def test_split_gives_biased_train_and_val_and_the_protocol_s_test():
    whole = source("digits", 1_437, 360)
    parts, images = biased_split.partition(whole, "B", 3, 40), biased_split.combined(whole)
    found = split(whole, 3, 40, bias="B")
    for part, places in ((found.train, parts.train), (found.val, parts.val), (found.test, parts.test)):
        assert torch.equal(part.pixels, images.pixels[places])
        assert torch.equal(part.labels, images.labels[places])


def test_a_source_too_small_or_on_disk_is_refused():
    with pytest.raises(DataProblem, match="has 9 images"):
        biased_split.partition(source("tiny", 6, 3), "A", 1)
    held = Images(Files(["a.png"], Scaling(8, 8, shorter=8)), torch.tensor([0]))
    with pytest.raises(DataProblem, match="choose another data set"):
        biased_split.combined(Source("large", held, held, ("a",)))


@pytest.mark.realdata
def test_parts_of_cifar10_hold_the_published_numbers_of_each_class(cifar10):
    whole = load("cifar10", cifar10, 2021)
    labels = biased_split.combined(whole).labels

    def counts(places: Tensor) -> list[int]:
        return torch.bincount(labels[places], minlength=10).tolist()

    for bias in biased_split.BIASES:
        parts = biased_split.partition(whole, bias, 2021)
        assert counts(torch.arange(15_000)) == PARTS["train slice"]
        assert counts(torch.arange(15_000, 20_000)) == PARTS["val slice"]
        assert counts(parts.test) == PARTS["test"]
        assert counts(parts.pool) == PARTS["pool"]
        off = [found - published for found, published in zip(counts(parts.train), BIASED[bias], strict=True)]
        # two draws differ by some 23 (one standard deviation) in a class of usual weight
        assert max(map(abs, off)) <= 60, (bias, off)
