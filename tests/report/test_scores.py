"""Accuracies, changes and the router's scorecard against counts by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from deeppatch.report import scores

SIGMAS = (0.5, 1.0, 3.0)
VIEWS = ["clean", "s=0.5", "s=1", "s=3"]
SUMMARIES = ["blurred", "append"]


def answers(seed: int, share: float = 0.6, images: int = 25) -> Tensor:
    """Right or wrong, (levels + 1, images)."""
    return torch.rand(4, images, generator=torch.Generator().manual_seed(seed)) < share


def test_views_are_named_by_level():
    assert scores.view_names(SIGMAS) == VIEWS


def test_accuracies_by_hand():
    right = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert scores.accuracies(right, SIGMAS) == pytest.approx(
        {"clean": 100.0, "s=0.5": 75.0, "s=1": 25.0, "s=3": 0.0, "blurred": 100 / 3, "append": 50.0}
    )
    assert list(scores.accuracies(right, SIGMAS)) == VIEWS + SUMMARIES


def test_append_is_the_share_of_all_answers():
    right = answers(0)
    found = scores.accuracies(right, SIGMAS)
    assert found["append"] == pytest.approx(100 * right.double().mean().item())
    assert found["blurred"] == pytest.approx(100 * right[1:].double().mean().item())
    with pytest.raises(ValueError, match="argument"):
        scores.accuracies(right[:3], SIGMAS)


@pytest.mark.parametrize("seed", range(4))
def test_accuracy_is_that_before_plus_repair_minus_break(seed):
    before, right = answers(seed, 0.5), answers(seed + 100, 0.7)
    changed = scores.changes(right, before, SIGMAS)
    was, now = scores.accuracies(before, SIGMAS), scores.accuracies(right, SIGMAS)
    assert set(changed) == {"repair", "break"}
    for view in VIEWS + SUMMARIES:
        assert now[view] == pytest.approx(was[view] + changed["repair"][view] - changed["break"][view])
        assert changed["repair"][view] > 0
        assert changed["break"][view] > 0


def test_repair_is_from_wrong_to_right_and_break_the_other_way():
    before = torch.tensor([[1, 0, 0, 0]] * 4, dtype=torch.bool)
    right = torch.tensor([[0, 1, 1, 0]] * 4, dtype=torch.bool)
    changed = scores.changes(right, before, SIGMAS)
    assert changed["repair"] == dict.fromkeys(VIEWS + SUMMARIES, 50.0)
    assert changed["break"] == dict.fromkeys(VIEWS + SUMMARIES, 25.0)
    same = scores.changes(before, before, SIGMAS)
    assert set(same["repair"].values()) | set(same["break"].values()) == {0.0}


def pairs(clean: list[float], degraded: list[float]) -> float:
    """AUROC as the share of pairs in which the degraded sample scores higher, ties counted half."""
    won = sum((d > c) + 0.5 * (d == c) for c in clean for d in degraded)
    return won / (len(clean) * len(degraded))


@pytest.fixture
def routed() -> tuple[Tensor, Tensor]:
    """Scores with ties and without, rising with the level, and the decisions of a threshold."""
    draw = torch.Generator().manual_seed(3)
    found = torch.randn(4, 17, generator=draw).double() + torch.tensor([0.0, -0.5, 0.5, 2.0]).view(4, 1)
    found = (found * 2).round() / 2
    return found, found > 0.5


def test_scorecard_equals_plain_counts(routed):
    found, moved = routed
    card = scores.scorecard(found, moved, SIGMAS)
    table = found.tolist()
    assert card["auroc"] == pytest.approx({
        "s=0.5": pairs(table[0], table[1]), "s=1": pairs(table[0], table[2]), "s=3": pairs(table[0], table[3]),
        "blurred": pairs(table[0], table[1] + table[2] + table[3]),
    })  # fmt: skip
    assert card["auroc"]["s=0.5"] < 0.5 < card["auroc"]["s=3"]
    stayed = [sum(not moved_one for moved_one in row) for row in moved.tolist()]
    assert card["false_switch_percent"] == pytest.approx(100 * (17 - stayed[0]) / 17)
    assert card["missed_switch_percent"] == pytest.approx({
        "s=0.5": 100 * stayed[1] / 17, "s=1": 100 * stayed[2] / 17, "s=3": 100 * stayed[3] / 17,
        "blurred": 100 * sum(stayed[1:]) / 51,
    })  # fmt: skip
    assert json.loads(json.dumps(card)) == card, "metrics.json holds it"


def test_perfect_and_useless_routers():
    found = torch.tensor([[0.0] * 5, [1.0] * 5, [2.0] * 5, [3.0] * 5])
    card = scores.scorecard(found, found > 0.5, SIGMAS)
    assert set(card["auroc"].values()) == {1.0}
    assert card["false_switch_percent"] == 0
    assert set(card["missed_switch_percent"].values()) == {0.0}
    card = scores.scorecard(torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.bool), SIGMAS)
    assert set(card["auroc"].values()) == {0.5}
    assert card["false_switch_percent"] == 0
    assert set(card["missed_switch_percent"].values()) == {100.0}


def test_routing_table_has_one_row_a_view(routed):
    card = scores.scorecard(*routed, SIGMAS)
    frame = scores.routing_table(card)
    assert list(frame.columns) == ["view", "auroc", "routed_wrongly_percent"]
    assert frame["view"].tolist() == [*VIEWS, "blurred"]
    assert math.isnan(frame["auroc"][0])
    assert frame["auroc"][1:].tolist() == [card["auroc"][view] for view in [*VIEWS[1:], "blurred"]]
    wrong = [card["false_switch_percent"], *card["missed_switch_percent"].values()]
    assert frame["routed_wrongly_percent"].tolist() == wrong
    shown = scores.show(frame)
    assert len(shown.splitlines()) == 6
    assert f"{card['auroc']['s=3']:.2f}" in shown
    assert "nan" not in shown.lower()


def test_tables_hold_every_network_and_measure():
    before, right = answers(1), answers(2)
    networks = {"pretrained": scores.accuracies(before, SIGMAS), "patched": scores.accuracies(right, SIGMAS)}
    frame = scores.table(networks)
    assert list(frame.columns) == ["network", *VIEWS, *SUMMARIES]
    assert frame["network"].tolist() == ["pretrained", "patched"]
    assert frame.loc[1, "s=1"] == networks["patched"]["s=1"]

    changed = {"patched": scores.changes(right, before, SIGMAS)}
    joined = scores.with_changes(frame, changed)
    assert list(zip(joined["network"], joined["measure"], strict=True)) == [
        ("pretrained", "accuracy"), ("patched", "accuracy"), ("patched", "repair"), ("patched", "break"),
    ]  # fmt: skip
    assert joined.loc[2, "clean"] == changed["patched"]["repair"]["clean"]
    assert joined.loc[3, "append"] == changed["patched"]["break"]["append"]
    values = joined.set_index(["measure", "network"])[VIEWS + SUMMARIES]
    expected = (
        values.loc[("accuracy", "pretrained")] + values.loc[("repair", "patched")] - values.loc[("break", "patched")]
    )
    np.testing.assert_allclose(values.loc[("accuracy", "patched")].astype(float), expected.astype(float))
    assert "measure" not in frame.columns, "the argument was changed"


def test_changes_are_shown_in_one_cell():
    changed = {"patched": {"repair": {"clean": 0.25, "s=1": 40.0}, "break": {"clean": 1.0, "s=1": 2.06}}}
    shown = scores.show_changes(changed)
    assert "+0.2 -1.0" in shown
    assert "+40.0 -2.1" in shown
    assert shown.splitlines()[0].split() == ["network", "clean", "s=1"]
