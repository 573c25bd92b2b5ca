"""Rankings, and the choice of filters to patch."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch

from deeppatch.errors import UserError
from deeppatch.localization.ranking import Ranking, cut_index, nearest_cut, random_ranking, rank, refine
from deeppatch.localization.ratio_estimation import RATIOS

SCORES = {"first": [0.3, -0.1, 0.2], "second": [0.0, 0.5]}


def ranked(width: int) -> Ranking:
    """One layer whose order is width - 1, ..., 0."""
    return Ranking("perfloss", {"conv": [0.0] * width}, {"conv": list(range(width - 1, -1, -1))})


@pytest.mark.parametrize(
    ("descending", "expected"),
    [(False, {"first": [1, 2, 0], "second": [0, 1]}), (True, {"first": [0, 2, 1], "second": [1, 0]})],
)
def test_channels_are_sorted_by_score(descending, expected):
    ranking = rank("perfloss", SCORES, descending=descending)
    assert ranking.order == expected
    assert list(ranking.order) == ["first", "second"]
    assert ranking.scores == {"first": [0.3, -0.1, 0.2], "second": [0.0, 0.5]}, "scores stay in channel order"


@pytest.mark.parametrize(("descending", "expected"), [(False, [1, 3, 0, 2, 4]), (True, [0, 2, 4, 1, 3])])
def test_ties_are_broken_by_channel_index_in_both_directions(descending, expected):
    assert rank("featswap", {"conv": [0.5, 0.0, 0.5, -0.0, 0.5]}, descending=descending).order["conv"] == expected


def test_ranking_survives_json():
    ranking = rank("featswap", SCORES, descending=True)
    content = json.loads(json.dumps(ranking.to_json()))
    assert set(content) == {"method", "layers"}
    assert content["layers"]["first"] == {"order": [0, 2, 1], "scores": [0.3, -0.1, 0.2]}
    again = Ranking.from_json(content)
    assert again == ranking
    assert list(again.order) == list(ranking.order), "layers keep their order: random choices depend on it"


def test_front_and_rear_are_the_two_ends_of_the_ranking():
    ranking = ranked(8)
    assert ranking.choose(0.25, "front", 0) == {"conv": [6, 7]}
    assert ranking.choose(0.25, "rear", 0) == {"conv": [0, 1]}
    assert ranking.choose(1.0, "front", 0) == ranking.choose(1.0, "rear", 0) == {"conv": list(range(8))}


@pytest.mark.parametrize(
    ("ratio", "width", "count"),
    [
        (0.25, 8, 2), (0.25, 10, 2), (0.25, 11, 2), (0.99, 4, 3), (1.0, 5, 5),
        # products that are a little less than the whole number in binary: 28.999999999999996 and the like
        (0.29, 100, 29), (0.57, 100, 57), (0.58, 100, 58), (0.35, 180, 63), (0.15, 20, 3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("side", ["front", "rear", "random"])
def test_floor_of_ratio_times_channels_are_chosen(ratio, width, count, side):
    chosen = ranked(width).choose(ratio, side, seed=4)["conv"]
    assert len(chosen) == count
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(width))


def test_count_is_exact_for_every_estimated_ratio_and_width():
    for ratio in (*RATIOS, 0.1, 0.25, 0.29, 0.5, 1.0):
        for width in (4, 8, 10, 16, 20, 24, 29, 32, 60, 64, 100, 116, 180, 232, 464, 512, 1024):
            count = int(Fraction(str(ratio)) * width)
            assert len(ranked(width).choose(ratio, "front", 0).get("conv", [])) == count, (ratio, width)


def test_layers_of_which_nothing_is_chosen_are_left_out():
    order = {"narrow": [1, 0], "wide": [3, 2, 1, 0], "narrower": [0]}
    ranking = Ranking("perfloss", {name: [0.0] * len(channels) for name, channels in order.items()}, order)
    assert ranking.choose(0.25, "front", 0) == {"wide": [3]}
    assert ranking.choose(0.24, "front", 0) == {}
    assert list(ranking.choose(0.5, "front", 0)) == ["narrow", "wide"]


def test_random_side_repeats_and_draws_anew_for_each_layer():
    ranking = random_ranking({"a": 40, "b": 40}, seed=1)
    torch.manual_seed(1)
    chosen = ranking.choose(0.5, "random", seed=7)
    torch.manual_seed(2)
    assert ranking.choose(0.5, "random", seed=7) == chosen, "depends on what was drawn before"
    places = {name: sorted(ranking.order[name].index(c) for c in channels) for name, channels in chosen.items()}
    assert places["a"] != places["b"]
    assert all(max(each) >= 20 and min(each) < 20 for each in places.values()), "that is a front or a rear"


def test_random_ranking_permutes_every_layer():
    widths = {"a": 30, "b": 30, "c": 5}
    ranking = random_ranking(widths, seed=3)
    assert ranking == random_ranking(widths, seed=3)
    assert {name: sorted(order) for name, order in ranking.order.items()} == {
        n: list(range(w)) for n, w in widths.items()
    }
    assert ranking.order["a"] != ranking.order["b"]
    assert ranking.scores == {name: [0.0] * width for name, width in widths.items()}
    assert ranking.method == "random"


def test_random_rankings_differ_by_seed():
    assert len({tuple(random_ranking({"a": 30}, seed).order["a"]) for seed in (3, 4, 5)}) == 3


def test_random_sides_differ_by_seed():
    ranking = ranked(40)
    assert len({tuple(ranking.choose(0.5, "random", seed)["conv"]) for seed in (7, 8, 9)}) == 3


def test_unknown_side_is_refused():
    with pytest.raises(UserError):
        ranked(8).choose(0.25, "middle", 0)


@pytest.mark.parametrize(
    ("ratio", "side", "count", "expected"),
    [
        (0.25, "front", 4, [7, 6, 5, 4]), (0.25, "rear", 4, [3, 2, 1, 0]), (0.5, "front", 2, [4, 3]),
        (0.5, "front", 3, [4, 3, 2]), (0.25, "front", 20, [7, 6, 5, 4, 3, 2, 1, 0]), (0.1, "front", 2, [7, 6]),
        (1.0, "front", 2, [1, 0]), (0.5, "front", 0, []),
    ],
)  # fmt: skip
def test_the_filters_nearest_the_cut(ratio, side, count, expected):
    assert nearest_cut(ranked(8), ratio, side, count) == {"conv": expected}


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("side", ["front", "rear"])
def test_the_cut_is_where_the_choice_ends(ratio, side):
    ranking = ranked(9)
    before = ranking.order["conv"][: cut_index(9, ratio, side)]
    chosen = ranking.choose(ratio, side, 0).get("conv", [])
    assert set(chosen) == (set(before) if side == "front" else set(range(9)) - set(before))


@pytest.mark.parametrize(("descending", "expected"), [(False, [5, 3, 4, 2, 1, 0]), (True, [5, 2, 4, 3, 1, 0])])
def test_refinement_sorts_the_window_alone(descending, expected):
    ranking = ranked(6)
    refined = refine(ranking, {"conv": [4, 3, 2]}, {"conv": [0.0, -0.5, 0.5]}, descending=descending)
    assert refined.order == {"conv": expected}
    assert refined.scores == ranking.scores
    assert refine(ranking, {"conv": []}, {"conv": []}, descending=descending) == ranking
