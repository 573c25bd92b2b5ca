"""The least pure images of one draw are chosen, and trained on with clean ones."""

from __future__ import annotations

import pytest
import torch

from deeppatch.data.epochs import Passes
from deeppatch.data.pairs import fixed_draw
from deeppatch.retrain.gini import gini

TRAINING = {"epochs": 1, "lr": 0.05}


def test_the_chosen_are_the_least_pure_whatever_the_batches(tiny, data, blur):
    draw = fixed_draw(data.train, blur, 60, 2021)
    ((pixels, labels),) = draw
    with torch.no_grad():
        probabilities = tiny(pixels).double().softmax(1)
    impurity = (1 - probabilities.square().sum(1)).tolist()
    best = sorted(range(60), key=lambda row: (-impurity[row], row))[:6]
    wrong = (probabilities.argmax(1) != labels).double()
    for size in (60, 7):
        found = gini(tiny, data, blur, batch_size=size, **TRAINING)
        chosen = found.documents["selection.json"]
        assert chosen["index"] == best, "a tenth of the images, most impure first"
        assert chosen["level"] == draw.levels[best].tolist()
        assert chosen["score"] == pytest.approx([impurity[row] for row in best], abs=1e-5)
        facts = found.facts
        assert (facts["scored_images"], facts["selected_images"]) == (60, 6)
        assert facts["selected_failures_percent"] == pytest.approx(100 * wrong[best].mean().item())
        assert facts["scored_failures_percent"] == pytest.approx(100 * wrong.mean().item())
        counts = torch.bincount(draw.levels[best], minlength=7).tolist()
        assert list(facts["selected_levels"].values()) == counts
        assert list(facts["selected_levels"]) == ["clean", *blur.level_names]


def test_clean_images_are_trained_on_too_unless_the_selection_is_alone(tiny, data, blur):
    costs = {}
    for name, options in (("all", {}), ("half", {"select_half": True}), ("only", {"select_only": True})):
        costs[name] = gini(tiny, data, blur, select_images=9, batch_size=20, **options, **TRAINING).passes
    assert costs == {"all": Passes(69, 480), "half": Passes(60, 480), "only": Passes(9, 480)}
