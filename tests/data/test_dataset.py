"""Data from what a caller has, and by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from deeppatch.data import sources
from deeppatch.data.dataset import Data, load_data
from deeppatch.data.images import Images, to_float
from deeppatch.data.splits import split
from deeppatch.errors import UserError

COUNT, CLASSES = 24, 3
LABELS = torch.arange(COUNT) % CLASSES


@pytest.fixture
def pixels() -> torch.Tensor:
    """8-bit images of 20x28 pixels."""
    return torch.randint(0, 256, (COUNT, 3, 20, 28), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


class Items(Dataset):
    """A data set of pairs, with names of classes as torchvision's data sets have them."""

    classes = ["cat", "dog", "eel"]

    def __init__(self, images, labels=None):
        self.images, self.labels = images, LABELS.tolist() if labels is None else labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def held(train, test=None, **options) -> Data:
    return Data.of(train=train, test=train if test is None else test, **options)


def refusal(train, **options) -> str:
    with pytest.raises(UserError) as caught:
        held(train, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def channels_last(pixels) -> list[np.ndarray]:
    return list(pixels.permute(0, 2, 3, 1).numpy())


GIVEN = {
    "uint8 tensors": lambda p: (p, LABELS),
    "float tensors": lambda p: (p / 255, LABELS),
    "double tensors": lambda p: ((p / 255).double(), LABELS),
    "whole numbers": lambda p: (p.long(), LABELS.int()),
    "arrays": lambda p: (np.stack(channels_last(p)), LABELS.numpy()),
    "images": lambda p: Images(p, LABELS),
    "a data set": lambda p: TensorDataset(p / 255, LABELS),
    "a data set of arrays": lambda p: Items(channels_last(p)),
    "a data set of PIL images": lambda p: Items(list(map(Image.fromarray, channels_last(p)))),
    "a loader": lambda p: DataLoader(TensorDataset(p / 255, LABELS), batch_size=7),
    "a loader, one by one": lambda p: DataLoader(TensorDataset(p, LABELS), batch_size=1),
    "a shuffled loader": lambda p: DataLoader(TensorDataset(p / 255, LABELS), 7, shuffle=True, drop_last=True),
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_data_are_the_same_however_they_are_given(pixels, given):
    data = held(given(pixels), val=given(pixels))
    for part in (data.train, data.val, data.test):
        assert part.pixels.dtype == torch.uint8
        assert torch.equal(part.pixels, pixels)
        assert part.labels.dtype == torch.int64
        assert torch.equal(part.labels, LABELS)
    assert len(data.classes) == CLASSES
    assert torch.equal(data.example, pixels[:2].float() / 255)


@pytest.mark.parametrize("shape", [(COUNT, 1, 20, 28), (COUNT, 20, 28)])
def test_grey_images_are_repeated_to_three_channels(pixels, shape):
    grey = pixels[:, 0]
    for given in ((grey.view(shape), LABELS), (grey.view(shape) / 255, LABELS), TensorDataset(grey / 255, LABELS)):
        assert torch.equal(held(given, val=given).train.pixels, grey.unsqueeze(1).expand(-1, 3, -1, -1))
    modes = Items([Image.fromarray(image) for image in grey.numpy()])
    assert torch.equal(held(modes, val=modes).train.pixels[:, 2], grey)


def test_other_floats_stay_floats():
    values = torch.rand(COUNT, 3, 5, 9)
    data = held((values, LABELS), val=(values, LABELS))
    assert torch.equal(data.train.pixels, values)
    assert torch.equal(to_float(data.train.pixels), values)
    assert torch.equal(data.example, values[:2])


def test_val_is_held_out_of_train_by_class_and_seed(pixels):
    data = held((pixels, LABELS), val_share=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (18, 6, COUNT)
    assert data.val.labels.bincount().tolist() == [2, 2, 2]
    both = torch.cat([data.train.pixels, data.val.pixels]).flatten(1).tolist()
    assert sorted(both) == sorted(pixels.flatten(1).tolist())
    again, other = (held((pixels, LABELS), val_share=0.25, seed=seed) for seed in (2021, 5))
    assert torch.equal(again.val.pixels, data.val.pixels)
    assert not torch.equal(other.val.pixels, data.val.pixels)
    assert len(held((pixels, LABELS)).val) == 4, "a fifth of fewer than 1,000 images"


def test_a_loader_that_samples_is_read_as_it_samples(pixels):
    sampler = WeightedRandomSampler([0.0] * 23 + [1.0], 9)
    data = Data.of(DataLoader(TensorDataset(pixels, LABELS), 4, sampler=sampler), (pixels, LABELS), (pixels, LABELS))
    assert torch.equal(data.train.pixels, pixels[23:].expand(9, -1, -1, -1))


def test_classes_are_as_given_else_the_data_set_s_own_else_numbers(pixels):
    assert held(Items(pixels)).classes == ("cat", "dog", "eel")
    assert held(DataLoader(Items(pixels))).classes == ("cat", "dog", "eel")
    assert held((pixels, LABELS)).classes == ("0", "1", "2")
    assert held((pixels, LABELS), classes=5).classes == ("0", "1", "2", "3", "4")
    assert held(Items(pixels), classes=["a", "b", "c"]).classes == ("a", "b", "c")


def test_pixels_that_are_normalised_are_refused_with_what_to_do(pixels):
    said = refusal(((pixels / 255 - 0.5) / 0.25, LABELS))
    assert said.startswith("train: pixels reach from -2 to 2, not 0 to 1")
    assert "put mean and standard deviation into Classifier(network, mean, std)" in said
    assert "not 0 to 1" in refusal((pixels.float(), LABELS))
    for value in (float("nan"), float("inf")):
        bad = pixels / 255
        bad[3, 1, 2, 2] = value
        assert "not 0 to 1" in refusal((bad, LABELS))
    assert "0 to 255" in refusal((pixels.long() + 1, LABELS))


def test_labels_are_checked(pixels):
    assert "labels reach from 0 to 2; with 2 classes they are 0 to 1" in refusal((pixels, LABELS), classes=2)
    assert "labels reach from -1 to 1; they start at 0" in refusal((pixels, LABELS - 1))
    assert "whole numbers" in refusal((pixels, LABELS.float()))
    assert "whole numbers" in refusal((pixels, torch.eye(3)[LABELS].long()))
    assert "24 images have 23 labels" in refusal((pixels, LABELS[1:]))


def test_sizes_and_shapes_are_checked(pixels):
    mixed = [*pixels[1:], torch.zeros(3, 28, 20, dtype=torch.uint8)]
    assert "train: images differ in size (20x28 and 28x20 pixels); resize" in refusal(Items(mixed))
    with pytest.raises(UserError, match="train, val and test: images differ in size"):
        Data.of((pixels, LABELS), (pixels.transpose(2, 3), LABELS))
    assert "(24, 2, 20, 28)" in refusal((pixels[:, :2], LABELS))
    assert "holds no images" in refusal((pixels[:0], LABELS[:0]))
    assert "holds no images" in refusal(Items([]))


def test_what_is_no_data_is_refused(pixels):
    assert "not str" in refusal("cifar10")
    assert "must be a pair" in refusal((pixels, LABELS, LABELS))
    assert "must be a pair" in refusal(TensorDataset(pixels))


def test_a_data_set_by_name_is_split_as_the_stages_split_it(tmp_path):
    data = load_data("digits", tmp_path, seed=7, limit=60, val_share=0.1)
    parts = split(sources.load("digits", tmp_path, 7), 7, 60, 0.1)
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(data, name).pixels, getattr(parts, name).pixels)
        assert torch.equal(getattr(data, name).labels, getattr(parts, name).labels)
    assert (data.classes, data.name, data.crop, data.mirror) == (tuple("0123456789"), "digits", False, False)


def test_images_of_a_folder_get_the_size_that_is_asked_for(tmp_path):
    for part in ("train", "test"):
        for label in "ab":
            (tmp_path / part / label).mkdir(parents=True)
            for index in range(10):
                Image.new("RGB", (20, 30), (index, 0, 0)).save(tmp_path / part / label / f"{index}.png")
    data = load_data(f"folder:{tmp_path}", tmp_path, image_size=24)
    assert data.train.pixels.shape == (16, 3, 24, 24)
    assert data.mirror
    assert load_data(f"folder:{tmp_path}", tmp_path).train.pixels.shape[1:] == (3, 30, 20)
