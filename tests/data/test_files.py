"""Images that stay on disk are read as torchvision's own transforms read them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from deeppatch.data import views
from deeppatch.data.files import Files, open_rgb
from deeppatch.data.scaling import Scaling
from deeppatch.data.sources import Images
from deeppatch.errors import DataProblem

# wide, tall, square, exact, smaller than what is cut from it, one pixel short
SIZES = [(61, 40), (40, 61), (50, 50), (32, 32), (12, 9), (33, 31)]

CUT = Scaling(28, 28, shorter=32)


def picture(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Six images of different sizes."""
    for place, size in enumerate(SIZES):
        picture(place, *size).save(tmp_path / f"{place}.png")
    return [str(tmp_path / f"{place}.png") for place in range(len(SIZES))]


def plain(path: str, shorter: int, size: int) -> torch.Tensor:
    """The oracle: torchvision's transforms of one image."""
    with Image.open(path) as image:
        return Compose([Resize(shorter), CenterCrop(size), PILToTensor()])(image.convert("RGB"))


@pytest.mark.parametrize(("shorter", "size"), [(32, 28), (24, 24), (16, 20), (256, 224)])
@pytest.mark.parametrize("index", [torch.tensor([4, 0, 3, 3]), torch.tensor([5]), slice(None), slice(1, 6, 2)], ids=str)
def test_an_index_is_answered_as_the_transforms_of_each_image(paths, shorter, size, index):
    found = Files(paths, Scaling(size, size, shorter=shorter))[index]
    chosen = paths[index] if isinstance(index, slice) else [paths[place] for place in index]
    assert torch.equal(found, torch.stack([plain(path, shorter, size) for path in chosen]))
    assert found.dtype == torch.uint8
    assert found.shape == (len(chosen), 3, size, size)


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png"), ("RGB", "jpg"), ("CMYK", "jpg")]
)
def test_other_modes_and_formats_become_rgb(tmp_path, mode, kind):
    path = tmp_path / f"x.{kind}"
    picture(5, 40, 30, mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    assert torch.equal(Files([str(path)], Scaling(16, 16, shorter=20))[:][0], plain(str(path), 20, 16))


def test_many_images_come_in_their_order(tmp_path):
    paths = [str(tmp_path / f"{place}.png") for place in range(200)]
    for place, path in enumerate(paths):
        Image.new("RGB", (4, 4), (place, 0, 0)).save(path)
    order = torch.randperm(200)
    assert torch.equal(Files(paths, Scaling(4, 4, shorter=4))[order][:, 0, 0, 0].long(), order)


def test_it_has_the_shape_of_what_it_stands_for(paths):
    files = Files(paths, CUT)
    assert files.shape == (6, 3, 28, 28)
    assert files.shape == files[:].shape


def test_taking_reads_nothing_and_keeps_the_order(paths):
    files = Files([*paths, "nowhere.png"], CUT)
    taken = files.take(torch.tensor([6, 3, 0, 3]))
    assert taken.shape == (4, 3, 28, 28)
    assert torch.equal(taken[1:], files[torch.tensor([3, 0, 3])])
    assert files.shape[0] == 7


def test_files_on_a_device_are_the_same_files(paths):
    files = Files(paths, CUT)
    moved = files.to(torch.device("meta"))
    assert moved[:2].device.type == "meta"
    assert moved.take(torch.tensor([0]))[:].device.type == "meta"
    assert files[:2].device.type == "cpu"
    assert torch.equal(moved.to(torch.device("cpu"))[:], files[:])


# --- digest


def rewritten(paths: list[str]) -> Files:
    picture(77, 61, 41).save(paths[0])
    return Files(paths, CUT)


def touched(paths: list[str]) -> Files:
    """Other content of the same length has another time of change."""
    state = Path(paths[0]).stat()
    os.utime(paths[0], ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))
    return Files(paths, CUT)


CHANGES = {
    "content": rewritten, "time of change": touched, "order": lambda paths: Files(paths[::-1], CUT),
    "fewer": lambda paths: Files(paths[:-1], CUT), "one twice": lambda paths: Files([*paths, paths[0]], CUT),
    "scale": lambda paths: Files(paths, Scaling(28, 28, shorter=33)),
    "cut": lambda paths: Files(paths, Scaling(27, 27, shorter=32)),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_digest_changes_with_what_is_read(paths, change):
    before = Files(paths, CUT).digest()
    assert change(paths).digest() != before


def test_a_digest_repeats(paths):
    files = Files(paths, CUT)
    first = files.digest()
    files[:]
    assert files.digest() == Files(list(paths), CUT).digest() == files.to(torch.device("meta")).digest() == first
    assert files.take(torch.arange(6)).digest() == first
    assert files.take(torch.tensor([1, 2])).digest() == Files(paths[1:3], CUT).digest()


# --- what cannot be read

DAMAGES = {
    "absent": lambda path: path.unlink(), "empty": lambda path: path.write_bytes(b""),
    "a page": lambda path: path.write_text("<html>404</html>"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_an_unreadable_image_is_named_when_it_is_read(paths, damage):
    damage(Path(paths[2]))
    files = Files(paths, CUT)
    assert files[:2].shape == (2, 3, 28, 28)
    with pytest.raises(DataProblem) as error:
        files[1:4]
    assert str(error.value) == f"{paths[2]} is no readable image; replace or delete it"


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_a_channel_are_refused_rather_than_clipped(paths, kind):
    path = Path(paths[2]).with_suffix(".tif")
    Image.fromarray(np.full((32, 32), 30000, kind)).save(path)
    with pytest.raises(DataProblem) as error:
        open_rgb(path)
    assert str(error.value) == f"{path} has more than 8 bits a channel; convert it to 8 bits"


# --- in images and views


@pytest.fixture
def images(paths) -> Images:
    return Images(Files(paths, CUT), torch.tensor([0, 1, 2, 0, 1, 2]))


def test_images_may_be_files(images):
    taken = images.take(torch.tensor([5, 0, 5])).to(torch.device("cpu"))
    assert isinstance(taken.pixels, Files)
    assert (len(images), len(taken), taken.labels.tolist()) == (6, 3, [2, 0, 2])
    assert torch.equal(taken.pixels[:], images.pixels[torch.tensor([5, 0, 5])])


def test_a_view_reads_files_batch_by_batch(images, paths):
    whole = images.pixels[:]
    read = list(view := views.clean(images, 4))
    assert [len(labels) for _, labels in read] == [4, 2]
    assert torch.equal(torch.cat([pixels for pixels, _ in read]), whole.float() / 255)
    assert torch.equal(torch.cat([labels for _, labels in read]), images.labels)
    Path(paths[5]).unlink()
    batches = iter(view)
    assert torch.equal(next(batches)[0], whole[:4].float() / 255)
    with pytest.raises(DataProblem):
        next(batches)


def test_an_epoch_over_files_is_that_over_their_pixels(images):
    held = Images(images.pixels[:], images.labels)
    for one, other in zip(*(views.Shuffled(each, 4, 1, 0, augment=True) for each in (images, held)), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
