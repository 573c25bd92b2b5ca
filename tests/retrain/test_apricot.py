"""Steps towards other models: their coefficients against the plain loop, what val takes back, and the windows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deeppatch.artifacts import state_digest
from deeppatch.retrain.apricot import Reduced, apricot
from deeppatch.retrain.fixing import Fixing, coefficients, moved_weights, names_to_move

SMALL = {"rdlm": 2, "rdlm_images": 30, "rdlm_epoch": 1, "fix_steps": 5, "batch_size": 20}


def plain(start, others, right, eta, strategy):
    """The weights after each failing image in turn, as they are written down."""
    w = start.clone()
    for image in right.T:
        good, bad = others[image], others[~image]
        towards = eta * len(good) / len(others) * (good.mean(0) - w) if strategy in (1, 2) and len(good) else 0
        away = eta * (w - bad.mean(0)) if strategy in (1, 3) and len(bad) else 0
        w = w + towards + away
    return w


@pytest.mark.parametrize("strategy", [1, 2, 3])
def test_coefficients_are_the_plain_loop(strategy):
    draw = torch.Generator().manual_seed(strategy)
    start, others = torch.randn(40, generator=draw).double(), torch.randn(6, 40, generator=draw).double()
    right = torch.rand(6, 25, generator=draw) < torch.rand(25, generator=draw)
    right[:, 0], right[:, 1] = True, False
    share = coefficients(right, 0.03, strategy)
    found = moved_weights({"w": start}, [{"w": each} for each in others], share)["w"]
    expected = plain(start, others, right, 0.03, strategy)
    assert (found - expected).abs().max() < 1e-6
    assert not torch.allclose(found, start, atol=1e-3)
    assert not coefficients(right, 0.0, strategy).any()


def test_a_step_shrinks_the_distance_to_the_mean_of_the_right_ones_by_one_minus_eta_n_over_r():
    start, others = torch.randn(30).double(), torch.randn(4, 30).double()
    right = torch.tensor([[True], [False], [True], [True]])
    found = moved_weights({"w": start}, [{"w": each} for each in others], coefficients(right, 0.2))["w"]
    mean = others[right[:, 0]].mean(0)
    assert torch.allclose(found - mean, (1 - 0.2 * 3 / 4) * (start - mean)), "and not 1 + eta n / R, away from it"


def test_running_statistics_move_along_unless_weights_move_away(tiny):
    parameters = [name for name, _ in tiny.named_parameters()]
    assert names_to_move(tiny, 3) == names_to_move(tiny, 1) == parameters
    statistics = {*names_to_move(tiny, 2)} - {*parameters}
    assert statistics == {f"network.bn{n}.running_{what}" for n in (1, 2) for what in ("mean", "var")}


def moved(model, by):
    return {name: each + by for name, each in model.state_dict().items() if name in names_to_move(model, 2)}


def fixing(model, measured, *, by=1.0, steps=4, right=True, unconditional=False):
    """Steps towards two models that are both right or wrong on the images, with accuracies by script."""
    values = iter(measured)
    batches = [torch.full((2, 3), right) for _ in range(steps)]
    others = [moved(model, by), moved(model, by)]
    return Fixing(model, others, batches, lambda _model: next(values), 0.1, 2, unconditional=unconditional)


def test_a_step_that_is_not_better_leaves_no_trace(tiny):
    before = state_digest(tiny.state_dict())
    found = fixing(tiny, [0.5, 0.5, 0.4, 0.5, 0.3])
    assert not found.advance()
    assert state_digest(tiny.state_dict()) == before
    assert [row[3] for row in found.rows] == [False] * 4
    assert found.validations == 5


def test_models_that_are_equal_or_wrong_change_nothing(tiny):
    before = state_digest(tiny.state_dict())
    same = fixing(tiny, [0.5, 0.6], by=0.0)
    assert same.advance(), "val says so"
    assert state_digest(tiny.state_dict()) == before
    wrong = fixing(tiny, [0.5], right=False)
    assert not wrong.advance()
    assert (wrong.validations, wrong.rows) == (1, [])
    assert state_digest(tiny.state_dict()) == before


def test_training_that_is_not_better_goes_back_to_the_step_and_forgets_the_momentum(tiny):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1, momentum=0.9)
    before = tiny.network.fc.weight.clone()
    found = fixing(tiny, [0.5, 0.4, 0.6, 0.6, 0.7, 0.8])
    assert found.advance()
    assert found.step == 2
    stepped = state_digest(tiny.state_dict())
    assert torch.allclose(tiny.network.fc.weight, before + 1 - 0.9**3, atol=1e-6), (
        "three images, each a tenth of the way"
    )
    for after, stays in ((0.6, False), (0.8, True)):
        with torch.no_grad():
            tiny.network.fc.weight += 1
        optimizer.state[tiny.network.fc.weight] = {"momentum_buffer": torch.ones(5, 12)}
        trained = state_digest(tiny.state_dict())
        assert found.after_training(optimizer) == pytest.approx(after)
        assert state_digest(tiny.state_dict()) == (trained if stays else stepped)
        assert (len(optimizer.state) > 0) == stays
        if not stays:
            assert found.advance()
    assert [row[2:] for row in found.rows] == [[40, False, None], [60, True, 60], [70, True, 80]]
    assert found.accuracy == 0.8


def test_windows_are_equally_far_from_each_other_in_one_order():
    windows = Reduced(20, 10_000, 40).windows(49_000, seed=3)
    whole = Reduced(1, 49_000, 40).windows(49_000, seed=3)[0]
    assert sorted(whole.tolist()) == list(range(49_000))
    for number, window in enumerate(windows):
        assert torch.equal(window, whole[1950 * number :][:10_000])


def test_it_says_what_it_did_and_cost(tiny, data, blur):
    found = apricot(tiny, data, blur, eta=0.3, epochs=2, **SMALL)
    steps = found.tables["steps.csv"]
    accepted = int(steps.accepted.sum())
    assert found.facts["accepted_steps"] == accepted
    assert found.facts["rdlm_passes"] == 60
    assert found.passes.train == 60 + 60 * accepted
    assert found.passes.forward == 3 * 60 + 420 * (1 + len(steps) + accepted)
    assert list(steps.columns) == list(Fixing.COLUMNS)
    if accepted:
        assert found.history.accuracy == sorted(found.history.accuracy)
        assert max(steps.stepped_percent.max(), steps.trained_percent.max()) == pytest.approx(
            100 * found.history.accuracy[-1]
        )


def test_without_a_better_step_the_network_is_the_base(tiny, data, blur, content):
    found = apricot(tiny, data, blur, eta=0.0, epochs=2, **SMALL)
    assert content(found) == content(tiny)
    assert found.history is None
    assert found.stored_bytes == 0
    assert not any(isinstance(module, nn.Module) and module.training for module in found.modules())
