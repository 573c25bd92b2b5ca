"""The estimated ratio: the rule of one standard error, resumption, and the curve's numbers."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor

from deeppatch.data.dataset import Data
from deeppatch.errors import UserError
from deeppatch.localization.ranking import random_ranking
from deeppatch.localization.ratio_estimation import RATIOS, accuracy_summary, choose_ratio, estimate_ratio


def correct(count: int, images: int = 100) -> Tensor:
    """One level, `count` of `images` correct."""
    return (torch.arange(images) < count).unsqueeze(0)


def chosen_of(curve: dict[float, int]) -> float:
    return choose_ratio(list(curve), lambda ratio: correct(curve[ratio]), {}, lambda found: None)["ratio"]


@pytest.mark.parametrize("ratios", [(), (0.0,), (0.5, 1.5)])
def test_ratios_that_are_none_are_refused(ratios, tiny, images, blur):
    data = Data(images, images, images, tuple("abcde"))
    with pytest.raises(UserError, match="above 0 and at most 1"):
        estimate_ratio(tiny, data, blur, train=lambda channels: tiny, ratios=ratios)


def test_ratios_are_the_published_ones():
    assert pytest.approx([0.15 + 0.1 * step for step in range(9)]) == RATIOS


# 90 of 100 right: standard error sqrt(0.9 * 0.1 / 99) = 0.03015, so 87 is within reach and 86 is not
@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ({0.15: 80, 0.25: 87, 0.35: 90}, 0.25),
        ({0.15: 80, 0.25: 86, 0.35: 90}, 0.35),
        ({0.15: 90, 0.25: 89, 0.35: 20}, 0.15),
        ({0.15: 87, 0.25: 90, 0.35: 88}, 0.15),
        ({0.15: 86, 0.25: 90, 0.35: 89}, 0.25),
        ({0.15: 10, 0.25: 20, 0.35: 90}, 0.35),
        ({0.15: 90, 0.25: 90, 0.35: 90}, 0.15),
        # all right: no error, nothing but the best will do
        ({0.15: 99, 0.25: 100, 0.35: 100}, 0.25),
        ({0.15: 0, 0.25: 0, 0.35: 0}, 0.15),
    ],
)
def test_smallest_ratio_within_one_standard_error_of_the_best_is_chosen(curve, expected):
    assert chosen_of(curve) == expected


def test_smallest_is_chosen_whatever_the_order_of_trial():
    assert chosen_of({0.35: 90, 0.25: 88, 0.15: 70, 0.95: 89}) == 0.25


def test_the_error_is_that_over_images_not_over_answers():
    """The levels of an image are not independent: two levels with the same answers halve no error."""
    one, two = accuracy_summary(correct(90)), accuracy_summary(correct(90).expand(2, -1))
    assert two["standard_error"] == pytest.approx(one["standard_error"])
    assert one["standard_error"] == pytest.approx((0.9 * 0.1 / 99) ** 0.5)


def test_summary_by_hand():
    point = accuracy_summary(torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool))
    assert point["levels"] == [0.5, 0.25]
    assert point["mean"] == pytest.approx(0.375)
    # per image 1, 1/2, 0, 0: sum of squares about the mean 0.6875
    assert point["standard_error"] == pytest.approx((0.6875 / 3 / 4) ** 0.5)
    assert json.loads(json.dumps(point)) == point
    assert set(point) == {"levels", "mean", "standard_error"}


def test_summary_of_one_image_has_no_error():
    assert accuracy_summary(torch.tensor([[True], [False]])) == {
        "levels": [1.0, 0.0],
        "mean": 0.5,
        "standard_error": 0.0,
    }


def test_resumed_estimate_equals_one_run():
    curve = {0.15: 70, 0.25: 88, 0.35: 90, 0.45: 91}
    kept: list[dict] = []
    tried: list[float] = []

    def correct_at(ratio: float) -> Tensor:
        tried.append(ratio)
        return correct(curve[ratio])

    whole = choose_ratio(list(curve), correct_at, {}, lambda found: kept.append(copy.deepcopy(found)))
    assert tried == list(curve), "every ratio is tried once, in order"
    assert [list(found) for found in kept] == [[str(r) for r in list(curve)[: n + 1]] for n in range(4)]
    assert kept[-1] == whole["curve"]
    for place in range(4):
        tried.clear()
        done = json.loads(json.dumps(kept[place]))
        again: list[dict] = []
        assert choose_ratio(list(curve), correct_at, done, lambda found: again.append(copy.deepcopy(found))) == whole  # noqa: B023
        assert tried == list(curve)[place + 1 :]
        assert again == kept[place + 1 :]
        assert done == kept[place], "the argument was changed"
    assert list(whole["curve"]) == ["0.15", "0.25", "0.35", "0.45"]
    # best 0.91, error 0.0288
    assert whole["ratio"] == 0.35


@pytest.fixture
def data(images) -> Data:
    return Data(images, images, images, tuple("abcde"))


def test_the_patch_of_each_ratio_is_compared_on_degraded_val(tiny, data, blur):
    asked: list[dict[str, list[int]]] = []
    drawn: list[float] = []

    def train(channels: dict[str, list[int]]) -> torch.nn.Module:
        asked.append(channels)
        drawn.append(torch.rand(()).item())
        return tiny

    tiny.train()
    found = estimate_ratio(tiny, data, blur, train=train, ratios=(0.5, 0.25), side="rear", seed=7, batch_size=50)
    assert tiny.training
    assert asked == [found.ranking.choose(ratio, "rear", 7) for ratio in (0.5, 0.25)]
    assert found.ranking == random_ranking({"conv1": 8, "conv2": 8, "conv3": 12}, 7)
    assert len(set(drawn)) == 1, "each training begins with the same random state"
    predictions = [tiny.eval()(blur(data.val.pixels / 255, level)).argmax(1) for level in range(1, 7)]
    expected = [(each == data.val.labels).double().mean().item() for each in predictions]
    assert found.curve["0.5"]["levels"] == pytest.approx(expected)
    assert found.ratio == 0.25, "the smaller of two that are as good"
