"""The safe recipe: teacher, loss, watch and scope against plain definitions, and a repair that resumes to the byte."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.hybrid import safe_repair, safe_training
from deeppatch.hybrid.confidence import PseudoLabelling
from deeppatch.hybrid.relearning import relearn, repair_from_warm_start
from deeppatch.hybrid.safe_repair import SafeTraining, safe_data_of
from deeppatch.hybrid.safe_training import SafeEpoch, SafeRecipe, SafeState, logit_adjustment, safe_loss
from deeppatch.hybrid.selection import semi_supervised, supervised
from deeppatch.hybrid.training_data import Recipe, RepairSettings

RECIPE = Recipe(batch=8, steps=3)
SETTINGS = RepairSettings(epochs=3, lr=0.01)


def stripes(count: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = 40 * torch.randn(count, 3, 12, 12, generator=generator)
    return Images((60.0 + 60 * labels.view(-1, 1, 1, 1) + noise).clamp(0, 255).to(torch.uint8), labels)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(16, 3),
    )  # fmt: skip


@pytest.fixture
def data() -> Data:
    return Data(stripes(40, 1), stripes(24, 2), stripes(15, 3), ("dark", "grey", "light"), crop=True, mirror=True)


POOL = stripes(50, 4)
CHOSEN = supervised(torch.tensor([3, 8, 12, 20]), POOL.labels[[3, 8, 12, 20]])


def state_of(model: nn.Module, data: Data, use: str = "both", **named) -> SafeState:
    prior = torch.full((3,), 1 / 3)
    found = safe_data_of(data, POOL.pixels, CHOSEN, prior, use)
    return SafeState(model, found, SafeRecipe(), PseudoLabelling(prior, 0.9), 0.9, 2021, **named)


def test_bought_images_are_labelled_and_all_others_of_the_pool_are_not(data):
    prior = torch.full((3,), 1 / 3)
    found = {use: safe_data_of(data, POOL.pixels, CHOSEN, prior, use) for use in ("both", "labels", "unlabelled")}
    assert [(len(each.bought), len(each.index)) for each in found.values()] == [(4, 46), (4, 0), (0, 50)]
    assert not torch.isin(found["both"].index, CHOSEN.bought).any()
    assert found["both"].pool.data_ptr() == POOL.pixels.data_ptr(), "the pool is not copied"
    assert found["both"].labelled_sizes(16, SafeRecipe()) == (12, 4)
    assert found["unlabelled"].labelled_sizes(16, SafeRecipe()) == (16, 0)


def test_the_teacher_is_the_moving_average_of_all_weights_and_buffers(model, data):
    state = state_of(model, data)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(3):
        for value in model.state_dict().values():
            value.add_(step + 1)
        state.average()
        for name, value in model.state_dict().items():
            moved = 0.9 * plain[name] + 0.1 * value if value.is_floating_point() else value.clone()
            plain[name] = moved
            assert torch.allclose(state.teacher.state_dict()[name], moved, atol=1e-5), name
    assert not state.teacher.training


def test_the_loss_is_adjusted_cross_entropy_on_labels_plus_weighted_pseudo_labels(model):
    pixels, labels = torch.rand(5, 3, 12, 12), torch.tensor([0, 1, 2, 2, 1])
    shares, prior = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    weights = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 1 / 3, 0, 1 / 3]])
    logits = model.eval()(pixels)
    plain = F.cross_entropy(logits[:2] + shares.log() - prior.log(), labels[:2])
    plain = plain + (F.cross_entropy(logits[2:3], labels[2:3]) + F.cross_entropy(logits[4:], labels[4:])) / 3
    found = safe_loss(logit_adjustment(shares, prior))(model, (pixels, labels, weights))
    assert found.item() == pytest.approx(plain.item(), rel=1e-5)
    uniform = torch.full((3,), 1 / 3)  # Menon et al.: only log pi
    menon = F.cross_entropy(logits[:2] + shares.log(), labels[:2])
    only = safe_loss(logit_adjustment(shares, uniform))(model, (pixels[:2], labels[:2], weights[:, :2]))
    assert only.item() == pytest.approx(menon.item(), rel=1e-5)


def test_a_batch_has_labelled_images_and_three_times_as_many_strong_views(model, data):
    state = state_of(model, data)
    seen = [(each[0].shape, each[2].sum(1).tolist()) for each in SafeEpoch(state, 0, 8, 3)]
    assert [shape[0] for shape, _ in seen] == [8 + 24] * 3
    assert all(weights[0] == pytest.approx(1) and 0 <= weights[1] <= 1 for _, weights in seen)
    assert set(state.watched) == {"confident_percent", "pseudo_label_entropy", "least_class_share"}
    labels_only = [each[0].shape[0] for each in SafeEpoch(state_of(model, data, "labels"), 0, 8, 2)]
    assert labels_only == [8, 8]


def test_pseudo_labels_are_given_up_after_two_epochs_without_a_class(model, data, caplog):
    caplog.set_level("INFO", "deeppatch")
    judged = []
    state = state_of(model, data, judge=lambda index, labels: judged.append(len(index)) or {"correct": 1.0})

    def epoch(labels: list[int]) -> None:
        state._seen = [(torch.arange(len(labels)), torch.tensor(labels), torch.ones(len(labels)))]
        state.end_epoch()

    for labels, stopped in (([0, 1, 1], False), ([0, 1, 2], False), ([0, 0, 1], False), ([1, 0, 0], True)):
        epoch(labels)
        assert state.stopped == stopped
    assert "pseudo-labels are given up" in caplog.text
    assert judged == [3] * 4
    assert state.watched["correct"] == 1.0
    assert [each[0].shape[0] for each in SafeEpoch(state, 4, 8, 2)] == [8, 8], "labels only"


@pytest.mark.parametrize("scope", ["all", "head", "norms"])
def test_only_what_the_scope_names_is_trained(model, data, scope):
    found = repair_from_warm_start(
        model, data, POOL.pixels, CHOSEN, SETTINGS, recipe=RECIPE, safe=SafeTraining(scope, prior=False)
    )
    before, after = found.safe.corrected.state_dict(), found.safe.averaged.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    head, norms = {"6.weight", "6.bias"}, {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    norms |= {"1.num_batches_tracked"}
    assert changed == {"all": head | norms | {"0.weight", "0.bias"}, "head": head, "norms": head | norms}[scope]


@pytest.mark.parametrize("use", ["both", "unlabelled"])
def test_a_repair_that_was_interrupted_ends_with_the_same_bytes(model, data, tmp_path, monkeypatch, use):
    def repaired(path, *, resume: bool):
        return repair_from_warm_start(
            model, data, POOL.pixels, CHOSEN, SETTINGS, use=use, recipe=RECIPE, safe=SafeTraining(),
            checkpoint=Checkpoint(path, {}, resume),
        )  # fmt: skip

    whole = repaired(tmp_path / "whole.pt", resume=False)
    average, epochs = SafeState.end_epoch, []

    def killed(state: SafeState) -> None:
        average(state)
        epochs.append(1)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(safe_training.SafeState, "end_epoch", killed)
        repaired(tmp_path / "cut.pt", resume=False)
    again = repaired(tmp_path / "cut.pt", resume=True)
    for name in ("averaged", "corrected"):
        first, second = (state_digest(getattr(each.safe, name).state_dict()) for each in (whole, again))
        assert first == second, name
    assert state_digest(whole.repaired.state_dict()) == state_digest(again.repaired.state_dict())
    assert whole.history == again.history
    assert [set(each) >= {"test", "confident_percent"} for each in whole.history.watched] == [True] * 3


def test_from_python_with_a_prior_that_is_known_and_with_mistakes(model, data):
    before = state_digest(model.state_dict())
    known = torch.tensor([0.5, 0.3, 0.2])
    unlabelled = semi_supervised(CHOSEN.bought, CHOSEN.labels, torch.tensor([1, 2]))
    for prior in (True, False, known):
        repaired = relearn(
            model, data, POOL.pixels, unlabelled, epochs=1, pseudo_labels="safe", scope="head", prior=prior,
            recipe=RECIPE,
        )  # fmt: skip
        assert len(repaired.history.loss) == 1
        assert all(each.requires_grad for each in repaired.parameters())
    assert state_digest(model.state_dict()) == before
    for wrong, said in (
        ({"pseudo_labels": "none"}, "pseudo_labels='none' is unknown; choose from safe, published"),
        ({"pseudo_labels": "safe", "scope": "body"}, "scope='body' is unknown; choose from all, head, norms"),
        ({"pseudo_labels": "safe", "prior": torch.ones(2)}, "give 3 shares of classes that sum to 1"),
    ):
        with pytest.raises(UserError, match=said):
            relearn(model, data, POOL.pixels, CHOSEN, epochs=1, recipe=RECIPE, **wrong)


def test_running_statistics_begin_with_those_of_the_starting_network_or_with_1_over_c(model, data, monkeypatch):
    begun = []
    monkeypatch.setattr(safe_repair.PseudoLabelling, "start_from", lambda _self, found: begun.append(found.shape))
    for measured in (True, False):
        safe = SafeTraining(recipe=SafeRecipe(measured_start=measured, weighting="soft"))
        repair_from_warm_start(model, data, POOL.pixels, CHOSEN, RepairSettings(epochs=1), recipe=RECIPE, safe=safe)
    assert begun == [(46, 3)]
