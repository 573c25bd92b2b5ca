from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from deeppatch.data import augmix
from deeppatch.data.augmix import DEPTH, OPERATIONS, Chains

SIZE = 32


def plain(image: Image.Image, operation: str, level: float, sign: float) -> Image.Image:
    """One operation on one image, as HybridRepair describes them, with PIL."""
    width, height = image.size

    def affine(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)

    return {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "posterize": lambda: ImageOps.posterize(image, 4 - int(0.4 * level)),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(25.6 * level)),
        "rotate": lambda: image.rotate(sign * int(3 * level), resample=Image.Resampling.BILINEAR),
        "shear_x": lambda: affine(1, sign * 0.03 * level, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, sign * 0.03 * level, 1, 0),
        "translate_x": lambda: affine(1, 0, sign * int(level * width / 30), 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, sign * int(level * height / 30)),
    }[operation]()


def chained(pixels: Tensor, chains: Chains, number: int) -> Tensor:
    """The chain of one image, one operation after the other."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    for step in range(DEPTH):
        if (operation := int(chains.operations[number, step])) >= 0:
            image = plain(
                image, OPERATIONS[operation], *(float(row[number, step]) for row in (chains.levels, chains.signs))
            )
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def single(operation: str, levels: list[float], signs: list[float]) -> Chains:
    """Chains of one operation."""
    shape = (len(levels), DEPTH)
    operations = torch.full(shape, -1)
    operations[:, 0] = OPERATIONS.index(operation)
    both = (torch.tensor(values, dtype=torch.float32)[:, None].expand(shape) for values in (levels, signs))
    return Chains(operations, *both, torch.ones(len(levels)))


@pytest.fixture
def pictures() -> Tensor:
    """Smooth pictures, noise, dark ones of few values, and one that is all of one value; uint8 (24, 3, 32, 32)."""
    draw = torch.Generator().manual_seed(8)
    smooth = torch.nn.functional.interpolate(torch.rand(10, 3, 4, 4, generator=draw), SIZE, mode="bicubic").clamp(0, 1)
    noise = torch.rand(8, 3, SIZE, SIZE, generator=draw)
    dark = (torch.rand(5, 3, SIZE, SIZE, generator=draw) * 4).floor() / 40
    flat = torch.full((1, 3, SIZE, SIZE), 0.3)
    return (torch.cat([smooth, noise, dark, flat]) * 255).to(torch.uint8)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_is_pil_s_image_by_image(pictures, operation):
    draw = np.random.default_rng(2)
    levels = [0.1, 2.49, 2.5, 3.0, *draw.uniform(0.1, 3, len(pictures) - 4)]
    chains = single(operation, levels, draw.choice([-1.0, 1.0], len(pictures)).tolist())
    found = augmix.apply_chains(pictures, chains)
    expected = torch.stack([chained(image, chains, number) for number, image in enumerate(pictures)])
    off = (found.int() - expected.int()).abs()
    if operation in ("autocontrast", "equalize", "posterize", "solarize", "translate_x", "translate_y"):
        assert off.max() == 0
    else:  # single precision here, double there, before cutting off
        assert off.max() <= 1
        assert (off > 0).float().mean() < 0.002
    assert operation == "solarize" or not torch.equal(found, pictures), "something was done"


def test_whole_chains_are_pil_s(pictures):
    pictures = pictures.repeat(10, 1, 1, 1)
    chains = augmix.draw_chains(len(pictures), torch.Generator().manual_seed(4))
    found = augmix.apply_chains(pictures, chains)
    expected = torch.stack([chained(image, chains, number) for number, image in enumerate(pictures)])
    off = (found.int() - expected.int()).abs().float()
    # a value off by one before a threshold, or in a histogram, is further off after it
    assert (off <= 1).float().mean() > 0.99
    assert off.mean() < 0.1


def test_chains_are_of_one_to_three_uniform_operations_at_uniform_levels():
    chains = augmix.draw_chains(20_000, torch.Generator().manual_seed(1))
    depth = (chains.operations >= 0).sum(1)
    assert torch.equal(chains.operations >= 0, torch.arange(DEPTH) < depth[:, None]), "a chain has no gap"
    assert (torch.bincount(depth, minlength=4)[1:] / 20_000 - 1 / 3).abs().max() < 0.02
    used = torch.bincount(chains.operations[chains.operations >= 0], minlength=9)
    assert (used / used.sum() - 1 / 9).abs().max() < 0.01
    assert 0.1 <= chains.levels.min() < 0.11
    assert 2.99 < chains.levels.max() <= 3
    assert set(chains.signs.unique().tolist()) == {-1, 1}
    assert abs(chains.signs.mean()) < 0.02
    assert abs(chains.shares.mean() - 0.5) < 0.01


def test_views_are_the_image_and_mixtures_of_it_with_its_chains(pictures):
    found = augmix.views(pictures, 3, torch.Generator().manual_seed(6))
    assert found.shape == (24, 4, 3, SIZE, SIZE)
    assert torch.equal(found[:, 0], pictures.float() / 255)
    chains = augmix.draw_chains(24 * 3, torch.Generator().manual_seed(6))
    ends = augmix.apply_chains(pictures.repeat_interleave(3, 0), chains).view(24, 3, 3, SIZE, SIZE).float() / 255
    share = chains.shares.view(24, 3, 1, 1, 1)
    torch.testing.assert_close(found[:, 1:], (1 - share) * found[:, :1] + share * ends)


def test_views_repeat_by_seed_and_go_on_with_their_generator(pictures):
    before = pictures.clone()
    first, second = (torch.Generator().manual_seed(3) for _ in range(2))
    one, again = augmix.views(pictures, 2, first), augmix.views(pictures, 2, second)
    assert torch.equal(one, again)
    assert not torch.equal(one[:, 1:], augmix.views(pictures, 2, first)[:, 1:]), "no stream is replayed"
    assert torch.equal(pictures, before), "the images stay as they are"


def test_images_need_not_be_square():
    pixels = torch.randint(0, 256, (40, 3, 20, 36), dtype=torch.uint8)
    chains = augmix.draw_chains(40, torch.Generator().manual_seed(4))
    found = augmix.apply_chains(pixels, chains)
    expected = torch.stack([chained(image, chains, number) for number, image in enumerate(pixels)])
    assert ((found.int() - expected.int()).abs() <= 1).float().mean() > 0.98


def test_no_view_of_no_image():
    assert augmix.views(torch.empty(0, 3, 8, 8, dtype=torch.uint8), 2, torch.Generator()).shape == (0, 3, 3, 8, 8)
    one = augmix.views(torch.full((2, 3, 8, 8), 51, dtype=torch.uint8), 0, torch.Generator())
    torch.testing.assert_close(one, torch.full((2, 1, 3, 8, 8), 0.2))
