from __future__ import annotations

import pytest
import torch

from deeppatch.data.sources import Images, Source, load
from deeppatch.data.splits import Splits, split
from deeppatch.errors import DataProblem

CLASSES = 5


def numbered(first: int, count: int, classes: int = CLASSES) -> Images:
    """Images whose pixel tells which they are: `first`, `first` + 1, ..."""
    number = torch.arange(first, first + count)
    pixels = torch.stack([number // 65536, number // 256 % 256, number % 256], 1).to(torch.uint8)
    return Images(pixels.view(-1, 3, 1, 1), number % classes)


def numbers(images: Images) -> list[int]:
    high, middle, low = images.pixels.long().flatten(1).T
    found = (high * 65536 + middle * 256 + low).tolist()
    assert images.labels.tolist() == [number % CLASSES for number in found], "labels stay with their images"
    return found


def source(train: int, test: int = 100) -> Source:
    names = tuple("abcde"[:CLASSES])
    return Source("numbers", numbered(0, train), numbered(100_000, test), names)


def per_class(images: Images) -> list[int]:
    return torch.bincount(images.labels, minlength=CLASSES).tolist()


@pytest.mark.parametrize(
    ("total", "held_out"),
    [(50_000, 1000), (60_000, 1200), (5000, 1000), (1437, 287), (100, 20)],
)
def test_val_is_a_fiftieth_but_large_enough_to_calibrate_on(total, held_out):
    parts = split(source(total), 2021)
    assert len(parts.val) == held_out
    assert len(parts.train) == total - held_out


@pytest.mark.parametrize(("share", "held_out"), [(0.2, 200), (0.5, 500), (0.005, 5)])
def test_val_is_the_share_that_is_asked_for(share, held_out):
    parts = split(source(1000), 2021, val_share=share)
    assert per_class(parts.val) == [held_out // CLASSES] * CLASSES
    assert sorted(numbers(parts.train) + numbers(parts.val)) == list(range(1000))


def test_a_share_that_leaves_a_class_out_is_refused_in_one_line():
    with pytest.raises(DataProblem, match=r"numbers: 1 of 1000 images") as error:
        split(source(1000), 2021, val_share=0.001)
    assert "\n" not in str(error.value)


def test_train_and_val_are_disjoint_and_cover_the_training_part():
    parts = split(source(1000), 2021)
    assert sorted(numbers(parts.train) + numbers(parts.val)) == list(range(1000))


def test_test_is_untouched():
    assert numbers(split(source(1000), 2021).test) == list(range(100_000, 100_100))


def test_every_class_has_its_share():
    uneven = numbered(0, 1000)
    labels = (torch.arange(1000) % 10).clamp(max=CLASSES - 1)  # 100 of each class, 600 of the last
    parts = split(Source("uneven", Images(uneven.pixels, labels), numbered(0, 10), tuple("abcde")), 2021)
    assert per_class(parts.val) == [20, 20, 20, 20, 120]
    assert per_class(parts.train) == [80, 80, 80, 80, 480]


def test_a_split_repeats_by_seed_and_keeps_file_order():
    made = {seed: numbers(split(source(1000), seed).val) for seed in (1, 2)}
    parts = split(source(1000), 1)
    assert numbers(parts.val) == made[1] == sorted(made[1])
    assert numbers(parts.train) == sorted(numbers(parts.train))
    assert made[1] != made[2]


def test_a_split_depends_on_nothing_drawn_before():
    first = numbers(split(source(1000), 1).val)
    torch.manual_seed(8)
    torch.rand(3)
    assert numbers(split(source(1000), 1).val) == first


@pytest.mark.parametrize("limit", [5, 20, 50])
def test_a_limit_keeps_a_stratified_subset_of_every_split(limit):
    whole, part = split(source(1000), 2021), split(source(1000), 2021, limit)
    for name in ("train", "val", "test"):
        images, everything = getattr(part, name), getattr(whole, name)
        assert per_class(images) == [limit // CLASSES] * CLASSES, name
        assert set(numbers(images)) < set(numbers(everything)), name


def test_a_limit_repeats_by_seed():
    made = {seed: numbers(split(source(1000), seed, 20).test) for seed in (1, 2)}
    assert numbers(split(source(1000), 1, 20).test) == made[1]
    assert made[1] != made[2]


def test_a_limit_above_the_size_of_a_split_keeps_all_of_it():
    whole, part = split(source(1000), 2021), split(source(1000), 2021, 200)
    assert len(part.train) == 200
    assert numbers(part.val) == numbers(whole.val)
    assert numbers(part.test) == numbers(whole.test)


@pytest.mark.parametrize("limit", [1, 4])
def test_a_limit_below_the_number_of_classes_is_refused_in_one_line(limit):
    with pytest.raises(DataProblem, match="numbers.*larger limit") as error:
        split(source(1000), 2021, limit)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("total", [4, 20])
def test_too_few_images_to_split_are_refused_in_one_line(total):
    with pytest.raises(DataProblem, match=f"of {total} images") as error:
        split(source(total), 2021)
    assert "\n" not in str(error.value)


def test_splits_name_their_parts(images):
    parts = Splits(images, images.take(torch.tensor([0])), images)
    assert [len(part) for part in (parts.train, parts.val, parts.test)] == [60, 1, 60]


@pytest.mark.parametrize("limit", [280, 286, 287, 355, 1145])
def test_a_limit_may_lie_just_below_the_size_of_a_split(limit, tmp_path):
    parts = split(load("digits", tmp_path, 2021), 2021, limit)
    assert [len(part) for part in (parts.train, parts.val, parts.test)] == [
        min(limit, size) for size in (1150, 287, 360)
    ]
