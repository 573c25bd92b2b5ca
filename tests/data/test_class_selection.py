"""Selections of classes: their images, names and labels by definition, one split for all of them, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deeppatch.data import sources
from deeppatch.data.class_selection import select_classes
from deeppatch.data.dataset import load_data
from deeppatch.data.images import Images, Source
from deeppatch.data.names import check_name, selection, slug
from deeppatch.data.splits import split
from deeppatch.errors import DataProblem


def rows(images: Images) -> set[bytes]:
    return {bytes(each.numpy()) for each in images.pixels.flatten(1)}


def source(name: str, classes: tuple[str, ...], seed: int, *, size: int = 4, mirror: bool = True) -> Source:
    draw = torch.Generator().manual_seed(seed)

    def part(count: int) -> Images:
        pixels = torch.randint(0, 256, (count, 3, size, size), generator=draw, dtype=torch.uint8)
        return Images(pixels, torch.arange(count) % len(classes))

    return Source(name, part(60), part(24), classes, mirror=mirror)


def test_a_selection_has_the_images_of_its_classes_in_their_order():
    wholes = {"pets": source("pets", ("cat", "dog", "owl"), 1), "more": source("more", ("owl", "ox"), 2, mirror=False)}
    found = select_classes("new", wholes, [("more", []), ("pets", ["2", "cat"])])
    assert found.classes == ("more:owl", "ox", "pets:owl", "cat")
    assert not found.mirror
    origins = [("more", 0), ("more", 1), ("pets", 2), ("pets", 0)]
    for part in ("train", "test"):
        images = getattr(found, part)
        for label, (whole, label_there) in enumerate(origins):
            there = getattr(wholes[whole], part)
            expected = there.pixels[there.labels == label_there]
            assert torch.equal(images.pixels[images.labels == label], expected)


def test_an_image_is_in_train_or_val_for_every_selection():
    whole, low, high, both = (
        split(sources.load(name, Path(), 7), 7)
        for name in ("digits", "digits:0-4", "digits:5-9", "digits:5-9+digits:0-4")
    )
    for part in ("train", "val", "test"):
        parts = [rows(getattr(each, part)) for each in (whole, low, high, both)]
        assert parts[1] | parts[2] == parts[0] == parts[3]
        labels = getattr(whole, part).labels
        assert len(getattr(low, part)) == int((labels < 5).sum())
    data = load_data("digits:3,8+digits:0", limit=60)
    assert data.classes == ("3", "8", "0")
    assert [len(part) for part in (data.train, data.val, data.test)] == [60, 60, 60]
    assert torch.bincount(data.train.labels).tolist() == pytest.approx([20] * 3, abs=2)


def test_names_of_selections():
    assert selection("digits") is selection("folder:a+b:c") is selection("digits-mix:3") is None
    assert selection("cifar10:cat,3-5") == [("cifar10", ["cat", "3", "4", "5"])]
    check_name("digits:0-4+svhn:7")
    assert slug("digits:0-4+svhn:7") == "digits-0-4+svhn-7"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits:0+svnh:1", r"svnh cannot be a part of a selection of classes \(did you mean svhn"),
        ("digits+imagenet", "imagenet cannot be a part of a selection"),
        ("digits:0,10", "digits has no class 10; it has 0 0, 1 1"),
        ("digits:0,1-3,2", "digits:2 is selected twice"),
        ("digits:", "digits:: name the classes after digits:, as digits:0-4"),
        ("digits:,", "name the classes after digits:"),
        ("digits:5", "digits:5 is one class"),
        ("digits:9-1", "9-1 holds no class; write the smaller index first, 1-9"),
        ("digits:0-999999999", "no data set has a class of such an index"),
    ],
)
def test_a_mistake_is_named(name, message):
    with pytest.raises(DataProblem, match=message):
        sources.load(name, Path(), 1)


def test_images_of_other_sizes_are_not_joined():
    wholes = {"one": source("one", ("a",), 1), "two": source("two", ("b",), 1, size=6)}
    with pytest.raises(DataProblem, match=r"of several \(one 4x4, two 6x6\); give --image_size"):
        select_classes("new", wholes, [("one", []), ("two", [])])
