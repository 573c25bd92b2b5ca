"""Tables of accuracies, changes, a router's scorecard and a training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from deeppatch import metrics
from deeppatch.report import scores
from deeppatch.training import History

LEVELS = ("s=0.5", "s=1", "s=3")
VIEWS = ["clean", "s=0.5", "s=1", "s=3"]
SUMMARIES = ["mean", "append"]


def answers(seed: int, share: float = 0.6, images: int = 25) -> Tensor:
    """Right or wrong, (levels + 1, images)."""
    return torch.rand(4, images, generator=torch.Generator().manual_seed(seed)) < share


@pytest.fixture
def routed() -> tuple[Tensor, Tensor]:
    """Scores with ties and without, rising with the level, and the decisions of a threshold."""
    draw = torch.Generator().manual_seed(3)
    found = torch.randn(4, 17, generator=draw).double() + torch.tensor([0.0, -0.5, 0.5, 2.0]).view(4, 1)
    found = (found * 2).round() / 2
    return found, found > 0.5


def test_routing_table_has_one_row_a_view(routed):
    card = metrics.router_metrics(*routed, LEVELS)
    frame = scores.routing_table(card)
    assert list(frame.columns) == ["view", "auroc", "routed_wrongly_percent"]
    assert frame["view"].tolist() == [*VIEWS, "mean"]
    assert math.isnan(frame["auroc"][0])
    assert frame["auroc"][1:].tolist() == [card["auroc"][view] for view in [*VIEWS[1:], "mean"]]
    wrong = [card["false_switch_percent"], *card["missed_switch_percent"].values()]
    assert frame["routed_wrongly_percent"].tolist() == wrong
    shown = scores.format_table(frame)
    assert len(shown.splitlines()) == 6
    assert f"{card['auroc']['s=3']:.2f}" in shown
    assert "nan" not in shown.lower()


def test_tables_hold_every_network_and_measure():
    before, right = answers(1), answers(2)
    networks = {"pretrained": metrics.accuracies(before, LEVELS), "patched": metrics.accuracies(right, LEVELS)}
    frame = scores.table(networks)
    assert list(frame.columns) == ["network", *VIEWS, *SUMMARIES]
    assert frame["network"].tolist() == ["pretrained", "patched"]
    assert frame.loc[1, "s=1"] == networks["patched"]["s=1"]

    changed = {"patched": metrics.repair_and_break_rates(right, before, LEVELS)}
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
    shown = scores.format_changes(changed)
    assert "+0.2 -1.0" in shown
    assert "+40.0 -2.1" in shown
    assert shown.splitlines()[0].split() == ["network", "clean", "s=1"]


def test_a_training_has_one_row_an_epoch_and_one_best():
    table = scores.training_table(History([2.0, 1.0, 1.5], [0.25, 0.5, 0.5]))
    assert table.to_dict("list") == {
        "epoch": [1, 2, 3], "loss": [2, 1, 1.5], "val_accuracy_percent": [25, 50, 50], "best": [False, True, False],
    }  # fmt: skip
