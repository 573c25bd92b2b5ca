"""What cannot be is refused in one line: numbers out of range, labels that are none, and pools of other images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError, check_counts
from deeppatch.hybrid.choosing import choose_labels
from deeppatch.hybrid.encoder_training import EncoderSettings
from deeppatch.hybrid.oracle import Oracle, check_oracle
from deeppatch.hybrid.relearning import relearn
from deeppatch.hybrid.safe_training import SafeRecipe
from deeppatch.hybrid.selection import supervised
from deeppatch.hybrid.training_data import Recipe, RepairSettings

POOL = torch.randint(0, 256, (12, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
IMAGES = Images(POOL, torch.arange(12) % 2)
DATA = Data(IMAGES, IMAGES, IMAGES, ("cat", "dog"))
UNASKED = supervised(torch.tensor([3, 8, 1]), torch.full((3,), -1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))


@pytest.mark.parametrize(
    ("make", "wrong", "said"),
    [
        (Recipe, {"batch": 0}, "batch=0: give a whole number, at least 1"),
        (Recipe, {"batch": 2.5}, "batch=2.5: give a whole number"),
        (Recipe, {"steps": 0}, "steps=0: give a whole number"),
        (Recipe, {"temperature": 0}, "temperature=0: give a number above 0"),
        (Recipe, {"alpha": math.nan}, "alpha=nan: give a number above 0"),
        (Recipe, {"smoothing": 1.5}, "smoothing=1.5: give a number from 0 to 1"),
        (Recipe, {"weight": -1.0, "ramp": -1}, "weight=-1.0, ramp=-1: give 0 or more"),
        (RepairSettings, {"epochs": True}, "epochs=True: give a whole number"),
        (RepairSettings, {"lr": -1.0}, "lr=-1.0: give a number above 0"),
        (RepairSettings, {"momentum": 2}, "momentum=2: give a number from 0 to 1"),
        (RepairSettings, {"weight_decay": math.inf}, "weight_decay=inf: give 0 or more"),
        (SafeRecipe, {"ratio": 0}, "ratio=0: give a whole number"),
        (SafeRecipe, {"bought_share": -0.1}, "bought_share=-0.1: give a number from 0 to 1"),
        (SafeRecipe, {"weighting": "hard"}, "weighting='hard' is unknown; choose from threshold, soft"),
        (EncoderSettings, {"batch_size": 0}, "batch_size=0: give a whole number"),
    ],
)
def test_settings_have_no_impossible_numbers(make, wrong, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")) as error:
        make(**wrong)
    assert "\n" not in str(error.value)
    make()


def test_numbers_of_arrays_are_counts_too():
    check_counts(batch=np.int64(3))


@pytest.mark.parametrize("labels", [[1, 0, 1], np.array([1.0, 0.0, 1.0]), torch.tensor([1, 0, 1], dtype=torch.uint8)])
def test_labels_are_whole_numbers_of_any_type(labels):
    assert UNASKED.with_labels(labels).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "b", "c"], "labels are list; give whole numbers"),
        (None, "labels are NoneType; give whole numbers"),
        (torch.full((3,), 0.5), "labels are not whole numbers"),
        ([1.0, math.nan, 0.0], "labels are not whole numbers"),
        ([True, False, True], "labels are not whole numbers"),
        ([1, 0], "give one label for each of the 3 images"),
        ([[1, 0, 1]], "give one label for each of the 3 images"),
        ([1, 0, -1], "give one label, 0 or more, for each of the 3 images"),
    ],
)
def test_what_is_no_label_is_refused(labels, said):
    with pytest.raises(UserError, match=said):
        UNASKED.with_labels(labels)
    if "0 or more" not in said:
        with pytest.raises(UserError, match=said):
            Oracle(lambda _images: labels, 3).query(UNASKED.bought)
        with pytest.raises(UserError, match=said):
            UNASKED.with_answers(labels)


def test_the_labels_of_an_oracle_are_those_of_the_whole_pool(model):
    check_oracle(None, 3)
    with pytest.raises(UserError, match="labels are \\(11,\\); give one label for each of the 12 images"):
        choose_labels(model, POOL, DATA, 3, method="random", oracle=torch.zeros(11, dtype=torch.long))


def test_a_pool_of_other_images_or_in_another_order_is_refused(model):
    asked = choose_labels(model, POOL, DATA, 3, method="random").with_labels([0, 1, 1])
    recipe = Recipe(batch=4, steps=1)
    relearn(model, DATA, POOL, asked, epochs=1, use="labels", recipe=recipe)
    for other in (POOL.flip(0), POOL[:11], POOL[:2]):
        with pytest.raises(UserError, match="another pool|give the right pool"):
            relearn(model, DATA, other, asked, epochs=1, use="labels", recipe=recipe)
    with pytest.raises(UserError, match="another pool"):
        choose_labels(model, POOL.flip(0), DATA, 1, method="random", earlier=asked)
    with pytest.raises(UserError, match=r"names images 3 to 99 of a pool of 12"):
        supervised(torch.tensor([3, 99]), torch.tensor([0, 1])).check(POOL, 2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pool_pixels": DATA, "data": POOL}, "the data are Tensor; give a Data, and the pixels of the pool in their"),
        ({"pool_pixels": POOL[..., :3]}, r"images of the pool have size \(4, 3\), those of the data \(4, 4\); resize"),
        ({"batch_size": 0}, "batch_size=0: give a whole number"),
        ({"views": 0}, "views=0: give a whole number"),
        ({"method": "prior"}, "'prior' chooses no images: it corrects the network; call deeppatch.correct_prior"),
    ],
)
def test_choosing_refuses_what_cannot_be_chosen_from(model, wrong, said):
    with pytest.raises(UserError, match=said):
        choose_labels(**{"model": model, "pool_pixels": POOL, "data": DATA, "budget": 2, "method": "random", **wrong})
