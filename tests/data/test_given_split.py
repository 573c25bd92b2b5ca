"""Class-biased splits from a file: the images that it names are taken, and a file that cannot be right is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from deeppatch.data import biased_split
from deeppatch.data.biased_split import BIASES
from deeppatch.data.given_split import given_split
from deeppatch.data.sources import Images, Source, load
from deeppatch.data.splits import split
from deeppatch.errors import DataProblem

# the published numbers of training images of each class of CIFAR-10
PUBLISHED = {
    "A": [1138, 1136, 1174, 1119, 1113, 1047, 1151, 1164, 1098, 1110],
    "B": [1496, 161, 1515, 1487, 1436, 1037, 1070, 1494, 942, 612],
    "C": [1290, 1391, 19, 1143, 1353, 1162, 1328, 891, 1404, 1269],
}
ORIGIN = Path("splits.npz")


def stored(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.fixture
def whole() -> Source:
    """Sixty images of one pixel that tells their place, of which the first 45 are the train part; they are permuted."""
    labels = torch.arange(60) * 7 % 3
    images = Images(torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, -1, -1), labels)
    return Source("mine", images.take(torch.arange(45)), images.take(torch.arange(45, 60)), ("a", "b", "c"))


def test_train_and_val_are_the_images_that_the_file_names_and_the_rest_is_as_before(whole):
    given = given_split(stored(B_train=[9, 0, 4], B_val=np.array([1, 3], dtype=np.uint8), A_train=[0]), "B", ORIGIN)
    parts, drawn = biased_split.partition(whole, "B", 5, given=given), biased_split.partition(whole, "B", 5)
    slices = {
        name: biased_split._permuted(45, 15, 5)[cut] for name, cut in (("train", slice(15)), ("val", slice(15, 20)))
    }
    assert torch.equal(parts.train, slices["train"][[9, 0, 4]].sort().values)
    assert torch.equal(parts.val, slices["val"][[1, 3]].sort().values)
    assert torch.equal(parts.test, drawn.test)
    assert torch.equal(parts.pool, drawn.pool)
    assert parts.digest != drawn.digest
    found = split(whole, 5, bias="B", given=given)
    assert torch.equal(found.train.pixels[:, 0, 0, 0].long(), parts.train)
    assert torch.equal(found.val.labels, biased_split.combined(whole).labels[parts.val])
    assert len(biased_split.partition(whole, "B", 5, limit=2, given=given).train) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (stored(A_train=[1], A_val=[2]), "has no B_train: its arrays are A_train, A_val; give a .npz file with"),
        (stored(B_train=[1]), "has no B_val: its arrays are B_train"),
        (stored(B_train=[[1, 2]], B_val=[2]), "B_train is int64 (1, 2); give a list of whole numbers"),
        (stored(B_train=[1.0], B_val=[2]), "B_train is float64 (1,); give a list of whole numbers"),
        (stored(B_train=np.zeros(0, int), B_val=[2]), "B_train is int64 (0,); give a list of whole numbers"),
        (stored(B_train=[1], B_val=3), "B_val is int64 (); give a list of whole numbers"),
        (stored(B_train=[1, -1], B_val=[2]), "B_train has index -1; give indices from 0"),
        (stored(B_train=[1, 5, 2, 5, 5], B_val=[2]), "B_train has index 5 3 times; give each image once"),
        (stored(B_train=np.array([{}]), B_val=[2]), "is damaged, or no .npz file of numbers"),
        (stored(B_train=[1], B_val=[2])[:-30], "is damaged, or no .npz file of numbers"),
        (stored(B_train=list(range(900)), B_val=[2])[:900], "is damaged, or no .npz file of numbers"),
        (b"B_train,B_val\n1,2\n", "is damaged, or no .npz file of numbers"),
        (b"", "is damaged, or no .npz file of numbers"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_right_is_refused_in_one_line(content, said):
    with pytest.raises(DataProblem) as refused:
        given_split(content, "B", ORIGIN)
    assert said in str(refused.value)
    assert str(refused.value).startswith("splits.npz")
    assert "\n" not in str(refused.value)


def test_a_damaged_array_and_a_single_array_are_refused():
    whole, file = bytearray(stored(B_train=list(range(300)), B_val=[2])), io.BytesIO()
    whole[400] ^= 255  # within the numbers, so that the checksum is wrong
    with pytest.raises(DataProblem, match="is damaged"):
        given_split(bytes(whole), "B", ORIGIN)
    np.save(file, [1, 2])
    with pytest.raises(DataProblem, match="has no B_train: it has no arrays with names"):
        given_split(file.getvalue(), "B", ORIGIN)
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("B_train.npy", "no array")
    with pytest.raises(DataProblem, match="is damaged|has no"):
        given_split(file.getvalue(), "B", ORIGIN)


def test_an_index_beyond_the_slice_is_refused(whole):
    for name, count in (("train", 15), ("val", 5)):
        arrays = {"C_train": [0], "C_val": [0], f"C_{name}": [2, count]}
        said = f"C_{name} has index {count}, and the slice for {name} has {count} images; give indices from 0 to"
        with pytest.raises(DataProblem, match=said):
            biased_split.partition(whole, "C", 1, given=given_split(stored(**arrays), "C", ORIGIN))


@pytest.mark.realdata
def test_the_published_split_has_the_published_numbers_of_each_class(shared, cifar10):
    source, path = load("cifar10", cifar10, 2021), shared / "hybridrepair" / "cifar10_biased_splits.npz"
    labels = biased_split.combined(source).labels
    for bias in BIASES:
        parts = biased_split.partition(source, bias, 2021, given=given_split(path.read_bytes(), bias, path))
        assert torch.bincount(labels[parts.train], minlength=10).tolist() == PUBLISHED[bias]
        assert (len(parts.train), len(parts.val)) == (11_250, 3_750)
        assert parts.train.max() < 15_000 <= parts.val.min()
