"""One size for images of any size: the centre is cut or all is squashed; files of one size keep it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deeppatch.data.images import Images
from deeppatch.data.scaling import Scaling, Sizing, own_scaling, scaled_tensors, square
from deeppatch.errors import DataProblem


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(("width", "height"), [(40, 40), (60, 40), (40, 60), (33, 71), (20, 20), (9, 30)])
def test_a_crop_keeps_the_aspect_and_cuts_the_centre(width, height):
    """The plain definition: scale so that the shorter side fits, then take the middle."""
    image, size = picture(width, height), 24
    factor = size / min(width, height)
    larger = max(size, int(factor * max(width, height)))
    whole = (size, larger) if width < height else (larger, size)
    scaled = np.asarray(image.resize(whole, Image.Resampling.BILINEAR))
    top, left = round((whole[1] - size) / 2), round((whole[0] - size) / 2)
    found = square(size)(image).permute(1, 2, 0).numpy()
    assert np.array_equal(found, scaled[top : top + size, left : left + size])


def test_squashing_takes_all_of_the_image():
    image = picture(60, 40)
    want = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(square(24, squash=True)(image).permute(1, 2, 0).numpy(), want)


@pytest.mark.parametrize("squash", [False, True])
def test_an_image_of_the_size_stays_as_it_is(squash):
    image = picture(31, 17)
    found = Scaling(17, 31, squash)(image)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(image))
    pixels = torch.randint(0, 256, (2, 3, 17, 31), dtype=torch.uint8)
    assert scaled_tensors(pixels, Scaling(17, 31, squash)) is pixels


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize(("width", "height"), [(32, 32), (40, 24)])
def test_pixels_in_memory_are_scaled_as_files_are(squash, width, height):
    image = picture(width, height)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).unsqueeze(0)
    found = scaled_tensors(pixels, square(48, squash=squash))
    want = square(48, squash=squash)(image)
    assert found.shape == (1, 3, 48, 48)
    assert (found[0].int() - want.int()).abs().max() <= 1


def test_files_of_one_size_keep_it_and_others_need_one(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(4)]
    for path in paths:
        picture(30, 20).save(path)
    assert own_scaling(paths, tmp_path) == Scaling(20, 30)
    picture(31, 20).save(paths[2])
    with pytest.raises(DataProblem, match=r"images have 2 sizes \(30x20 \(3\), 31x20 \(1\)\).*give --image_size N"):
        own_scaling(paths, tmp_path)
    assert Sizing(default=8).of_files(paths, tmp_path) == square(8)
    assert Sizing(size=9, squash=True, default=8).of_files(paths, tmp_path) == square(9, squash=True)


def test_a_turned_image_counts_as_it_is_shown(tmp_path):
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    picture(30, 20).save(path, exif=exif)
    assert own_scaling([str(path)], tmp_path) == Scaling(30, 20)


def test_data_in_arrays_keep_their_size_unless_one_is_given():
    images = Images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    assert Sizing(default=224).in_memory(images.pixels) is images.pixels
    assert Sizing(40).in_memory(images.pixels).shape == (2, 3, 40, 40)
