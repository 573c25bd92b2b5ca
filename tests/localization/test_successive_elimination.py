"""Elimination against the exact ranking, on given answers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch.localization.ablation import CorrectCounts, DegradedBatch, EditedLogits, count_correct
from deeppatch.localization.ranking import rank
from deeppatch.localization.successive_elimination import Elimination, LayerElimination, eliminate

SIZE = 50


def given(answers: dict[str, Tensor], base: Tensor):
    """Return batches, and an ablation under which the images named by `answers` (C, N) of each layer are correct."""
    indices = torch.arange(len(base))
    batches = [DegradedBatch(part, torch.zeros(len(part), dtype=torch.int64)) for part in indices.split(SIZE)]

    def prepare(batch: DegradedBatch) -> EditedLogits:
        def edited(name: str | None, channel: int) -> Tensor:
            correct = base[batch.degraded] if name is None else answers[name][channel, batch.degraded]
            return F.one_hot((~correct).long(), 2).float()

        return edited

    return batches, prepare


def draws(seed: int, accuracies: list[float], images: int = 2000) -> tuple[dict[str, Tensor], Tensor]:
    """Draw the answers of a layer whose channels have these accuracies; the images are in the order of their margin."""
    draw = torch.Generator().manual_seed(seed)
    hard = torch.rand(images, generator=draw)
    hard = hard[(hard - 0.6).abs().argsort()]
    noise = 0.1 * torch.randn(len(accuracies), images, generator=draw)
    return {"conv": hard + noise < torch.tensor(accuracies)[:, None]}, hard < 0.6


def idle(_given: object) -> None:
    """Take a tick."""


def ran(answers: dict[str, Tensor], base: Tensor, k: int, delta: float, begun=None, keep=idle) -> Elimination:
    batches, ablation = given(answers, base)
    elimination = begun or Elimination.start({name: len(rows) for name, rows in answers.items()}, {"conv": k})
    eliminate(elimination, batches, len(base), ablation, delta, save=keep)
    return elimination


def exact(answers: dict[str, Tensor], base: Tensor, sign: int):
    batches, ablation = given(answers, base)
    filters = {name: range(len(rows)) for name, rows in answers.items()}
    scores = count_correct(batches, filters, ablation, CorrectCounts()).scores(sign)
    return rank("given", scores, descending=sign > 0)


@pytest.mark.parametrize("sign", [-1, 1])
def test_every_score_is_exact_while_all_filters_are_active(sign, monkeypatch):
    monkeypatch.setattr(LayerElimination, "decide", lambda layer, delta, unread: None)
    answers, base = draws(0, [0.59, 0.62, 0.6, 0.61, 0.6, 0.63])
    found = ran(answers, base, 2, 0.05)
    assert found.ranking("given", sign, len(base)).order == exact(answers, base, sign).order
    scores = found.ranking("given", sign, len(base)).scores["conv"]
    assert scores == pytest.approx(exact(answers, base, sign).scores["conv"], abs=1e-12)
    assert found.image_passes() == 6 * 2000


def test_filters_far_from_the_cut_are_decided_early_and_correctly():
    answers, base = draws(1, [0.55, 0.65, 0.55, 0.65, 0.55, 0.599, 0.601])
    found = ran(answers, base, 3, 0.01)
    assert set(found.ranking("given", 1, len(base)).order["conv"][:3]) == {1, 3, 6}
    images = found.layers["conv"].images.tolist()
    assert max(images[:5]) <= 500, "those are decided"
    assert images[5] == images[6] > 500, "these two are close to the cut"
    assert found.image_passes() == sum(images) < 7 * 2000 / 2
    exact_scores = exact(answers, base, 1).scores["conv"]
    for score, expected in zip(found.ranking("given", 1, len(base)).scores["conv"], exact_scores, strict=True):
        assert score * expected >= 0
        assert abs(score) <= abs(expected) + 0.002, "what has not been read counts as unchanged"


def test_wrong_sides_are_as_rare_as_allowed():
    wrong = decisions = spared = 0
    for seed in range(60):
        answers, base = draws(seed, [0.5, 0.53, 0.56, 0.59, 0.62, 0.65], images=1500)
        found = ran(answers, base, 3, 0.02)
        wrong += len(
            set(found.ranking("given", 1, len(base)).order["conv"][:3]) - set(exact(answers, base, 1).order["conv"][:3])
        )
        decisions, spared = decisions + 6, spared + 6 * 1500 - found.image_passes()
    assert wrong <= 0.05 * decisions, "an error probability of 0.02 at a time, looked at many times"
    assert spared > 0.5 * 60 * 6 * 1500, "elimination is worth it"


def test_equal_filters_stay_active_to_the_end_and_are_ranked_by_channel():
    answers, base = draws(2, [0.6, 0.2])
    answers = {"conv": answers["conv"][[1, 0, 0, 0]]}
    found = ran(answers, base, 2, 0.05)
    assert found.ranking("given", 1, len(base)).order["conv"] == [1, 2, 3, 0]
    assert found.layers["conv"].images.tolist()[1:] == [2000] * 3


@pytest.mark.parametrize("k", [0, 3])
def test_a_cut_at_an_end_needs_one_part(k):
    answers, base = draws(3, [0.5, 0.6, 0.7])
    found = ran(answers, base, k, 0.05)
    assert found.image_passes() == 3 * SIZE


def test_a_resumed_elimination_ends_as_one_that_was_not_interrupted():
    answers, base = draws(4, [0.55, 0.57, 0.6, 0.61, 0.8])
    kept: list[dict] = []
    whole = ran(answers, base, 2, 0.05, keep=lambda state: kept.append(copy.deepcopy(state.state())))
    for index in (0, 4, 5, 7, len(kept) - 1):
        again = Elimination.start({"conv": 5}, {"conv": 2})
        again.load(copy.deepcopy(kept[index]))
        counted: list[int] = []
        ran(answers, base, 2, 0.05, begun=again, keep=lambda _state, counted=counted: counted.append(1))
        assert again.ranking("given", -1, len(base)) == whole.ranking("given", -1, len(base))
        assert len(counted) == len(kept) - index - 1
