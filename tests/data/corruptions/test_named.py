from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deeppatch.data import sources
from deeppatch.data.corruptions import SIGMAS, GaussianBlur, corruption, identity
from deeppatch.data.corruptions.own import CleanImages, own_folder
from deeppatch.data.images import Images, to_float
from deeppatch.data.scaling import Sizing, square
from deeppatch.errors import UserError


def batch(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


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
        assert torch.equal(named(pixels, levels), GaussianBlur(SIGMAS)(pixels, levels))
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


@pytest.mark.parametrize("what", ["frog", {}, {"a": 3}, 7])
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


def test_names_and_groups_are_levels_of_one_corruption():
    found = corruption("gaussion,spatial,fog,jpeg_compression", severity="1,4")
    assert found.level_names == (
        *(f"gaussion-s={sigma:g}" for sigma in SIGMAS), "fog-1", "fog-4", "jpeg_compression-1", "jpeg_compression-4",
        "spatial-1", "spatial-4",
    )  # fmt: skip
    assert (len(found), found.families) == (12, (6, 2, 2, 2))
    pixels, generator = batch(13, 32, 32), torch.Generator().manual_seed(3)
    mixed = found(pixels, torch.arange(13), generator)
    assert torch.equal(mixed[0], pixels[0])
    for level in range(13):
        torch.testing.assert_close(mixed[level], found(pixels[level : level + 1], level, generator)[0])
    torch.testing.assert_close(mixed[8:9], corruption("fog")(pixels[8:9], 4, generator))


def test_held_out_types_are_left_out():
    kept, everything = corruption("all", hold_out="noise,fog"), corruption("all")
    assert len(everything) == 75
    assert set(everything.level_names) - set(kept.level_names) == {
        f"{name}-{severity}" for name in ("gaussian_noise", "shot_noise", "impulse_noise", "fog")
        for severity in range(1, 6)
    }  # fmt: skip


def test_severities_of_callables_are_refused():
    with pytest.raises(UserError, match="belong to corruptions by name"):
        corruption(noise, severity="1")


def test_a_callable_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_rain.py").write_text(
        "def rain(pixels, generator):\n    return pixels / 2\n\nheavy = {'one': rain, 'two': rain}\nnumber = 3\n"
    )
    (tmp_path / "my_ruin.py").write_text("raise RuntimeError('first\\nsecond')\n")
    monkeypatch.chdir(tmp_path)
    pixels = batch(2, 8, 8)
    found = corruption("my_rain:rain")
    assert found.level_names == ("rain",)
    assert torch.equal(found(pixels, 1), pixels / 2)
    assert corruption("fog,my_rain:heavy").level_names[-2:] == ("one", "two")
    for path, said in {
        "my_rain:rian": "my_rain has nothing called rian (did you mean rain?)",
        "my_rain:number": "my_rain:number is int; name a function",
        "my_ruin:rain": "my_ruin cannot be imported from",
        "my_absent:rain": "my_absent cannot be imported from",
    }.items():
        with pytest.raises(UserError) as caught:
            corruption(path)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_identity_of_a_list_has_that_of_its_callables(tmp_path, monkeypatch):
    images = Images((batch(8, 8, 8) * 255).to(torch.uint8), torch.zeros(8, dtype=torch.long))
    assert identity(corruption("fog", severity="2"), images) == "fog-2"
    (tmp_path / "my_dark.py").write_text("def dark(pixels, generator):\n    return pixels / 2\n")
    monkeypatch.chdir(tmp_path)
    one, callable_digest = identity(corruption("fog,my_dark:dark", severity="2"), images).split()
    assert one == "fog-2"
    assert callable_digest == identity(corruption("my_dark:dark"), images)


def test_one_s_own_images_are_scaled_as_the_clean_ones_are(tmp_path):
    """Squashed where the clean ones are squashed: an image that is its own degraded version gives the same pixels."""
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for index in range(2):
                values = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(values).save(tmp_path / part / label / f"{label}{index}.png")
    for scaling in (square(8), square(8, squash=True)):
        source = sources.load(f"folder:{tmp_path}", tmp_path, 1, Sizing(8, squash=scaling.squash))
        parts = {"train": source.train, "val": source.train, "test": source.test}
        names = sources.image_names(f"folder:{tmp_path}", tmp_path)
        clean = CleanImages(parts, source.classes, (source.train, source.test), names, scaling=scaling)
        pixels = to_float(source.test.pixels)
        assert torch.equal(own_folder(tmp_path, clean)(pixels, 1), pixels)
