"""Pools: cut from a labelled data set, or all images of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from deeppatch.data import biased_split
from deeppatch.data.images import Images, Source
from deeppatch.data.pool import Pool, folder_pool, simulated_pool
from deeppatch.data.scaling import square
from deeppatch.errors import DataProblem

CPU = torch.device("cpu")


@pytest.fixture
def source() -> Source:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (240, 3, 4, 4), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.arange(240) % 3)
    return Source("any", images.take(torch.arange(200)), images.take(torch.arange(200, 240)), ("a", "b", "c"))


def test_a_simulated_pool_is_the_rest_of_the_data_set_with_its_truth(source):
    parts = biased_split.partition(source, "A", 3)
    pool = simulated_pool(source, parts, CPU)
    mixed = biased_split.combined(source)
    assert torch.equal(pool.pixels, mixed.pixels[parts.pool])
    assert torch.equal(pool.truth, mixed.labels[parts.pool])
    assert pool.names == [str(index) for index in parts.pool.tolist()]
    assert (len(pool), pool.folder, pool.digest) == (len(parts.pool), None, parts.digest)
    other = biased_split.partition(source, "A", 4)
    assert simulated_pool(source, other, CPU).digest != pool.digest


@pytest.fixture
def folder(tmp_path) -> Path:
    for index in range(6):
        path = tmp_path / f"day{index % 2}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 7), (20 * index, 0, 0)).save(path)
    return tmp_path


def read(folder: Path, **named) -> Pool:
    return folder_pool(folder, square(5), CPU, **named)


def test_a_folder_s_pool_has_no_truth_and_its_images_are_named_by_file(folder):
    pool = read(folder)
    assert pool.names == ["day0/0.png", "day0/2.png", "day0/4.png", "day1/1.png", "day1/3.png", "day1/5.png"]
    assert pool.pixels.shape == (6, 3, 5, 5)
    assert (pool.pixels[:, 0, 0, 0] // 20).tolist() == [0, 2, 4, 1, 3, 5]
    assert (pool.truth, pool.folder) == (None, folder)


def test_a_limit_keeps_a_subset_by_seed_and_another_pool_has_another_digest(folder):
    some = read(folder, limit=3, seed=1)
    assert set(some.names) < set(read(folder).names)
    assert (some.names, some.digest) == (read(folder, limit=3, seed=1).names, read(folder, limit=3, seed=1).digest)
    assert len({read(folder, limit=3, seed=seed).digest for seed in range(8)}) > 1
    before = read(folder).digest
    (folder / "day1" / "1.png").rename(folder / "day1" / "6.png")
    assert read(folder).digest != before, "names count too"


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataProblem, match="holds no image"):
        read(tmp_path)
