"""Joining through the API: every join answers as the comparison measures it, for images of another size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deeppatch.artifacts import state_digest
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.modular.heads import Heads
from deeppatch.modular.joining import BEFORE, compare_joins, default_joins, join_module
from deeppatch.modular.joins import JOINS, class_metrics
from deeppatch.modular.modules import Modules, as_classifier


def images(count: int, classes: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 10, 18), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % classes)


def network(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes)
    )


class Case:
    """A strong network of two classes, its modules, and a weak network of four, whose last is class 1 of the strong."""

    def __init__(self, *, heads: bool) -> None:
        torch.manual_seed(2)
        self.strong, self.weak = network(2), network(4)
        base = state_digest(as_classifier(self.strong).state_dict())
        kept = torch.rand(2, 6) < 0.7
        kept[:, 0] = True
        self.modules = Modules(base, {"0": kept}, Heads(2, 2) if heads else None)
        self.data = Data(images(20, 2, 1), images(20, 2, 2), images(20, 2, 3), ("a", "b"))
        self.weak_data = Data(images(40, 4, 4), images(20, 4, 5), images(30, 4, 6), ("w", "x", "y", "b"))

    @property
    def given(self) -> tuple:
        return self.weak, self.modules, self.strong, 1, self.data


@pytest.mark.parametrize("join", [*JOINS, "percentile:5,95"])
def test_a_joined_model_answers_as_the_comparison_has_it(join):
    case = Case(heads=True)
    found = compare_joins(*case.given, case.weak_data, joins=[join])
    model = join_module(*case.given, join=join, weak_data=case.weak_data)
    test = case.weak_data.test
    with torch.no_grad():
        scores = model(test.pixels.float() / 255)
    assert scores.shape == (30, 4)
    assert class_metrics(scores.argmax(1), test.labels, 3) == found.metrics[join]
    assert list(found.metrics) == [BEFORE, join]
    assert (found.range_images, found.test_images) == (10, 30)
    with torch.no_grad():
        before = case.weak.eval()(test.pixels.float() / 255).argmax(1)
    assert class_metrics(before, test.labels, 3) == found.metrics[BEFORE]


def test_nothing_is_shared_or_changed():
    case = Case(heads=False)
    before = [state_digest(each.state_dict()) for each in (case.weak, case.strong)]
    model = join_module(*case.given)
    assert case.weak.training
    assert case.strong.training
    with torch.no_grad():
        for values in model.parameters():
            values.zero_()
    assert [state_digest(each.state_dict()) for each in (case.weak, case.strong)] == before


def test_the_default_join_is_direct_where_there_are_heads():
    assert join_module(*Case(heads=True).given).join is None
    bare = Case(heads=False)
    assert default_joins(bare.modules) == ["min_max", "percentile", "outlier", "norm", "calibrate"]
    own = bare.data.val.pixels[bare.data.val.labels == 1].float() / 255
    with torch.no_grad():
        scores = bare.modules.member(bare.strong, own, 1)(own)
    found = join_module(*bare.given).join
    assert (found.low, found.high) == pytest.approx((scores.min().item(), scores.max().item()), rel=1e-5)


def test_mistakes_are_told():
    bare = Case(heads=False)
    with pytest.raises(UserError, match="direct needs modules with heads"):
        join_module(*bare.given, join="direct")
    with pytest.raises(UserError, match="give weak_data"):
        join_module(*bare.given, join="calibrate")
    with pytest.raises(UserError, match="class 2: the modules are of classes 0 to 1"):
        join_module(bare.weak, bare.modules, bare.strong, 2, bare.data)
    with pytest.raises(UserError, match="val has no image of class 1"):
        join_module(*bare.given[:4], Data(bare.data.train, images(4, 1, 7), bare.data.test, ("a", "b")))
