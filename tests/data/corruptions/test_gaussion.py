from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from deeppatch.data.corruptions import SIGMAS, GaussianBlur, kernel_size

CPU = torch.device("cpu")
SHAPES = [(32, 32), (20, 33), (41, 16)]


def one_by_one(pixels: torch.Tensor, levels: list[int]) -> torch.Tensor:
    """The oracle: torchvision's blur of each image by itself."""
    images = []
    for image, level in zip(pixels, levels, strict=True):
        sigma = (0.0, *SIGMAS)[level]
        images.append(gaussian_blur(image, [kernel_size(sigma)] * 2, [sigma] * 2) if level else image)
    return torch.stack(images)


def batch(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def test_the_levels_are_the_published_ones():
    assert SIGMAS == (0.5, 1, 1.5, 2, 2.5, 3)
    assert [kernel_size(sigma) for sigma in SIGMAS] == [3, 5, 7, 9, 11, 13]


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("level", range(1, 7))
def test_a_level_is_torchvision_s_blur(height, width, level):
    pixels = batch(4, height, width)
    want = one_by_one(pixels, [level] * 4)
    blurred = GaussianBlur(SIGMAS)(pixels, level)
    torch.testing.assert_close(blurred, want, rtol=0, atol=1e-5)
    assert (blurred - pixels).abs().max() > 0.05


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_batch_may_mix_levels(height, width):
    levels = [3, 0, 6, 1, 0, 2, 4, 5]
    pixels = batch(len(levels), height, width)
    found = GaussianBlur(SIGMAS)(pixels, torch.tensor(levels))
    torch.testing.assert_close(found, one_by_one(pixels, levels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("level", range(7))
def test_one_level_for_all_is_that_level_for_each(level):
    pixels = batch(3, 20, 33)
    blur = GaussianBlur(SIGMAS)
    torch.testing.assert_close(blur(pixels, level), blur(pixels, torch.full((3,), level)), rtol=0, atol=1e-6)


def test_level_zero_returns_the_very_pixels():
    pixels = batch(3, 20, 33)
    blur = GaussianBlur(SIGMAS)
    assert torch.equal(blur(pixels, 0), pixels)
    assert torch.equal(blur(pixels, torch.zeros(3, dtype=torch.long)), pixels)
    assert torch.equal(blur(pixels, torch.tensor([4, 0, 6]))[1], pixels[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(blur(pixels, torch.tensor([4, 0, 6]))[1], pixels[1])


def test_the_pixels_given_are_left_alone():
    pixels = batch(3, 20, 33)
    before = pixels.clone()
    GaussianBlur(SIGMAS)(pixels, torch.tensor([4, 0, 6]))
    GaussianBlur(SIGMAS)(pixels, 5)
    assert torch.equal(pixels, before)


def test_a_blur_keeps_the_range_and_flat_images(blur):
    flat = torch.full((6, 3, 12, 12), 0.7)
    levels = torch.arange(1, 7)
    torch.testing.assert_close(blur(flat, levels), flat, rtol=0, atol=1e-6)
    found = blur(batch(6, 12, 12), levels)
    assert found.min() >= 0
    assert found.max() <= 1


def test_stronger_levels_leave_less_detail(blur):
    pixels = batch(1, 12, 12).expand(7, -1, -1, -1)
    detail = blur(pixels, torch.arange(7)).std((1, 2, 3)).tolist()
    assert detail == sorted(detail, reverse=True)
    assert len(set(detail)) == 7


def test_the_levels_may_be_others():
    pixels = batch(2, 12, 12)
    blur = GaussianBlur([0.8])
    want = gaussian_blur(pixels, [kernel_size(0.8)] * 2, [0.8, 0.8])
    assert blur.sigmas == (0.8,)
    torch.testing.assert_close(blur(pixels, 1), want, rtol=0, atol=1e-5)
