"""Networks between a base and its fine-tuned copy: the ends, the way between, and the choice."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from deeppatch.artifacts import Checkpoint
from deeppatch.data.epochs import Passes
from deeppatch.errors import UserError
from deeppatch.evaluation import correct_by_level
from deeppatch.metrics import upper_bound
from deeppatch.retrain import interpolate as module
from deeppatch.retrain.interpolate import Point, between, choose, interpolate

SHARES = (0.0, 0.25, 0.5, 1.0)


@pytest.fixture
def tuned(tiny, lively):
    """A copy of the tiny network that differs from it everywhere."""
    torch.manual_seed(8)
    other = lively(type(tiny)(type(tiny.network)(), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
    other.network.bn1.num_batches_tracked += 7
    with torch.no_grad():
        other.network.fc.bias[0] = -0.0
    return other


def test_both_ends_are_the_networks_bit_for_bit(tiny, tuned, content):
    assert content(between(tiny, tuned, 0)) == content(tiny)
    assert content(between(tiny, tuned, 1)) == content(tuned)
    kept = between(tiny, tuned, 1, keep=True).state_dict()
    for name, value in kept.items():
        of = tiny if "running" in name or "tracked" in name else tuned
        assert torch.equal(value, of.state_dict()[name])


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_between_them_every_number_is_on_the_straight_line(tiny, tuned, share):
    found = between(tiny, tuned, share).state_dict()
    for (name, first), last in zip(tiny.state_dict().items(), tuned.state_dict().values(), strict=True):
        if first.is_floating_point():
            line = (1 - share) * first.double() + share * last.double()
            assert torch.allclose(found[name].double(), line, atol=1e-6)
        else:
            assert torch.equal(found[name], first)


def test_networks_of_other_shapes_are_refused(tiny, tuned):
    tuned.network.fc = torch.nn.Linear(12, 6)
    with pytest.raises(UserError, match="other layers than the base"):
        between(tiny, tuned, 0.5)


@pytest.mark.parametrize("statistics", ["linear", "keep", "again"])
def test_the_curve_is_what_each_network_measures(tiny, tuned, data, blur, statistics, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 30)
    found = interpolate(tiny, tuned, data, blur, statistics=statistics, shares=SHARES, max_clean_drop=100)
    curve = found.tables["curve.csv"].set_index(["part", "share"])
    before = correct_by_level(tiny, data.val, None)[0]
    assert len(curve) == 8
    for share in SHARES if statistics != "again" else ():
        rows = correct_by_level(between(tiny, tuned, share, keep=statistics == "keep"), data.val, blur)
        row = curve.loc[("val", share)]
        assert row["clean"] == pytest.approx(100 * rows[0].double().mean().item())
        assert row["mean"] == pytest.approx(100 * rows[1:].double().mean().item())
        assert row["lost"] == (before & ~rows[0]).sum()
        assert row["bound_points"] == pytest.approx(100 * upper_bound(int(row["lost"]), 60))
    best = curve.loc["val"]["mean"].max()
    assert curve.loc[("val", found.facts["share"])]["mean"] == best
    assert list(curve.loc["val"]["chosen"]) == list(curve.loc["test"]["chosen"])
    again = 4 * 60 if statistics == "again" else 0
    assert (found.passes, found.history) == (Passes(forward=4 * 7 * 60 + again), None)


def test_again_is_the_same_twice_and_moves_the_base(tiny, tuned, data, blur, content):
    given = {"statistics": "again", "shares": (0.0,), "max_clean_drop": 100}
    first, second = (interpolate(tiny, tuned, data, blur, **given) for _ in range(2))
    assert content(first) == content(second) != content(tiny)


@pytest.mark.parametrize("statistics", ["linear", "again"])
def test_a_bound_of_nothing_leaves_the_base(tiny, tuned, data, blur, content, statistics):
    found = interpolate(tiny, tuned, data, blur, statistics=statistics, shares=SHARES, max_clean_drop=0)
    assert content(found) == content(tiny)
    assert found.facts["share"] == 0


def test_the_choice_is_the_best_within_the_bound_and_the_first_of_equals():
    means, bounds = (10.0, 30.0, 30.0, 50.0), (0.3, 0.3, 0.5, 1.2)
    points = [
        Point("val", place / 10, 0, bound, {"mean": mean})
        for place, (mean, bound) in enumerate(zip(means, bounds, strict=True))
    ]
    chosen = {most: choose(points, most) for most in (0.1, 0.3, 1.0, 2.0)}
    assert {most: point and point.share for most, point in chosen.items()} == {0.1: 0.0, 0.3: 0.1, 1.0: 0.1, 2.0: 0.3}
    assert choose(points, 0.1, base_is_first=False) is None
    for order in itertools.permutations(points[1:]):
        assert choose([points[0], *order], 2.0) == points[3]


def test_measured_points_are_not_measured_again(tiny, tuned, data, blur, content, tmp_path: Path, monkeypatch):
    whole = interpolate(tiny, tuned, data, blur, shares=SHARES, max_clean_drop=100)
    measured = []

    def interrupted(network, images, corruption, **given):
        measured.append(corruption)
        if len([each for each in measured if each]) > 4:  # in the third of four points, two parts each
            raise KeyboardInterrupt
        return correct_by_level(network, images, corruption, **given)

    path = tmp_path / "checkpoint.pt"
    monkeypatch.setattr(module, "correct_by_level", interrupted)
    with pytest.raises(KeyboardInterrupt):
        interpolate(tiny, tuned, data, blur, shares=SHARES, checkpoint=Checkpoint(path, {}, resume=False))
    measured.clear()
    again = interpolate(
        tiny, tuned, data, blur, shares=SHARES, max_clean_drop=100, checkpoint=Checkpoint(path, {}, resume=True)
    )
    assert len([each for each in measured if each]) == 4
    assert content(again) == content(whole)
    assert again.tables["curve.csv"].equals(whole.tables["curve.csv"])


@pytest.mark.parametrize(
    ("wrong", "said"), [({"statistics": "none"}, "choose from"), ({"max_clean_drop": 101}, "0 to 100")]
)
def test_a_wrong_setting_is_refused(tiny, tuned, data, blur, wrong, said):
    with pytest.raises(UserError, match=said):
        interpolate(tiny, tuned, data, blur, **wrong)
