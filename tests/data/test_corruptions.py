from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur

from deeppatch.data import names
from deeppatch.data.corruptions import NOISES, SIGMAS, Blur, corruption, identity, kernel_size
from deeppatch.data.images import Images
from deeppatch.errors import UserError

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
    assert NOISES["gaussion"] == SIGMAS == (0.5, 1, 1.5, 2, 2.5, 3)
    assert [kernel_size(sigma) for sigma in SIGMAS] == [3, 5, 7, 9, 11, 13]
    assert set(names.NOISES.values()) == NOISES.keys()


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("level", range(1, 7))
def test_a_level_is_torchvision_s_blur(height, width, level):
    pixels = batch(4, height, width)
    want = one_by_one(pixels, [level] * 4)
    blurred = Blur(SIGMAS, height, width, CPU)(pixels, level)
    torch.testing.assert_close(blurred, want, rtol=0, atol=1e-5)
    assert (blurred - pixels).abs().max() > 0.05


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_batch_may_mix_levels(height, width):
    levels = [3, 0, 6, 1, 0, 2, 4, 5]
    pixels = batch(len(levels), height, width)
    found = Blur(SIGMAS, height, width, CPU)(pixels, torch.tensor(levels))
    torch.testing.assert_close(found, one_by_one(pixels, levels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("level", range(7))
def test_one_level_for_all_is_that_level_for_each(level):
    pixels = batch(3, 20, 33)
    blur = Blur(SIGMAS, 20, 33, CPU)
    torch.testing.assert_close(blur(pixels, level), blur(pixels, torch.full((3,), level)), rtol=0, atol=1e-6)


def test_level_zero_returns_the_very_pixels():
    pixels = batch(3, 20, 33)
    blur = Blur(SIGMAS, 20, 33, CPU)
    assert torch.equal(blur(pixels, 0), pixels)
    assert torch.equal(blur(pixels, torch.zeros(3, dtype=torch.long)), pixels)
    assert torch.equal(blur(pixels, torch.tensor([4, 0, 6]))[1], pixels[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(blur(pixels, torch.tensor([4, 0, 6]))[1], pixels[1])


def test_the_pixels_given_are_left_alone():
    pixels = batch(3, 20, 33)
    before = pixels.clone()
    Blur(SIGMAS, 20, 33, CPU)(pixels, torch.tensor([4, 0, 6]))
    Blur(SIGMAS, 20, 33, CPU)(pixels, 5)
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
    blur = Blur([0.8], 12, 12, CPU)
    want = gaussian_blur(pixels, [kernel_size(0.8)] * 2, [0.8, 0.8])
    assert blur.sigmas == (0.8,)
    torch.testing.assert_close(blur(pixels, 1), want, rtol=0, atol=1e-5)


# --- by name, and as callables


def noise(pixels, generator):
    return pixels + 0.2 * torch.randn(pixels.shape, generator=generator)


def grey(pixels, generator):
    return pixels.mean(1, keepdim=True)


@pytest.mark.parametrize("name", ["gaussian-blur", "gaussion"])
def test_a_named_corruption_is_the_blur_at_any_size(name):
    named = corruption(name)
    assert (len(named), named.level_names) == (6, ("s=0.5", "s=1", "s=1.5", "s=2", "s=2.5", "s=3"))
    for height, width in ((12, 12), (20, 28), (12, 12)):
        pixels, levels = batch(7, height, width), torch.arange(7)
        assert torch.equal(named(pixels, levels), Blur(SIGMAS, height, width, CPU)(pixels, levels))
    assert corruption(named) is named


def test_images_that_are_smaller_than_the_kernel_are_refused_in_one_line():
    assert corruption("gaussion")(batch(2, 7, 9), 6).shape == (2, 3, 7, 9)
    with pytest.raises(UserError, match="images of 6x9 pixels are too small for a blur") as caught:
        corruption("gaussion")(batch(2, 6, 9), 1)
    assert "\n" not in str(caught.value)


def test_each_level_of_a_mapping_is_its_own_callable_and_level_0_is_clean():
    both = corruption({"dark": lambda pixels, _generator: pixels / 2, "grey": grey})
    assert both.level_names == ("dark", "grey")
    pixels = batch(7, 20, 28)
    levels = torch.tensor([1, 0, 2, 2, 1, 0, 1])
    want = [image / 2 if level == 1 else image.mean(0).expand(3, -1, -1) if level == 2 else image
            for image, level in zip(pixels, levels.tolist(), strict=True)]  # fmt: skip
    assert torch.equal(both(pixels, levels), torch.stack(want))
    for level in range(3):
        assert torch.equal(both(pixels, level), both(pixels, torch.full((7,), level)))
    assert both(pixels, 0) is pixels


def test_a_single_callable_is_called_by_its_name():
    assert corruption(noise).level_names == ("noise",)
    assert corruption(lambda pixels, _generator: pixels).level_names == ("corrupted",)


def test_results_are_clamped_and_8_bit_ones_scaled():
    pixels = batch(2, 5, 6)
    assert torch.equal(corruption(lambda p, _g: p * 3 - 1)(pixels, 1), (pixels * 3 - 1).clamp(0, 1))
    found = corruption(lambda p, _g: (p * 255).round().to(torch.uint8))(pixels, 1)
    torch.testing.assert_close(found, pixels, rtol=0, atol=0.5 / 255 + 1e-6)


def test_what_a_callable_does_to_its_input_stays_its_own():
    pixels = batch(3, 5, 6)
    before = pixels.clone()
    corruption(lambda p, _g: p.zero_())(pixels, 1)
    corruption(lambda p, _g: p.zero_())(pixels, torch.tensor([0, 1, 1]))
    assert torch.equal(pixels, before)


def test_a_module_is_called_in_eval_mode_and_left_as_it_was():
    dropout = nn.Dropout(0.5)

    class Drop(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = dropout

        def forward(self, pixels, generator):
            return self.dropout(pixels)

    pixels = batch(2, 5, 6)
    assert torch.equal(corruption(Drop())(pixels, 1), pixels)
    assert dropout.training


@pytest.mark.parametrize(
    ("degrade", "said"),
    [
        (lambda p, _g: p[:, :, 1:], "returned (2, 3, 4, 6)"),
        (lambda p, _g: p[:, :2], "returned (2, 2, 5, 6)"),
        (lambda p, _g: p / 0 * 0, "not finite"),
        (lambda p, _g: None, "returned NoneType"),
    ],
)
def test_a_result_that_is_no_batch_of_pixels_is_refused_in_one_line_that_names_the_callable(degrade, said):
    with pytest.raises(UserError) as caught:
        corruption({"odd one": degrade})(batch(2, 5, 6), 1)
    assert "the corruption odd one must return pixels (2, 3, 5, 6)" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["fog", {}, {"a": 3}, 7])
def test_what_is_no_corruption_is_refused(what):
    with pytest.raises(UserError, match="corruption"):
        corruption(what)


def test_the_identity_of_a_callable_is_what_it_does():
    images = Images((batch(70, 5, 6) * 255).to(torch.uint8), torch.zeros(70, dtype=torch.long))
    assert identity(corruption("gaussion"), images) == "s=0.5 s=1 s=1.5 s=2 s=2.5 s=3"
    first = identity(corruption(noise), images)
    assert identity(corruption({"noise": noise}), images) == first
    others = [corruption({"other": noise}), corruption(noise, seed=1), corruption(grey)]
    assert len({first, *(identity(each, images) for each in others)}) == 4
    fewer = Images(images.pixels[:64], images.labels[:64])
    assert identity(corruption(noise), fewer) == first, "64 images are enough"
