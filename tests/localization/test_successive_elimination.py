"""Races against the exact ranking, on answers that are given."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch.localization.ablation import Counts, Edited, Sample, count
from deeppatch.localization.ranking import rank
from deeppatch.localization.successive_elimination import Elimination, LayerElimination, begin, run

SIZE = 50


def given(answers: dict[str, Tensor], base: Tensor):
    """Return samples, and an ablation under which the images named by `answers` (C, N) of each layer are right."""
    places = torch.arange(len(base))
    samples = [Sample(part, torch.zeros(len(part), dtype=torch.int64)) for part in places.split(SIZE)]

    def prepare(sample: Sample) -> Edited:
        def edited(name: str | None, channel: int) -> Tensor:
            right = base[sample.degraded] if name is None else answers[name][channel, sample.degraded]
            return F.one_hot((~right).long(), 2).float()

        return edited

    return samples, prepare


def draws(seed: int, accuracies: list[float], images: int = 2000) -> tuple[dict[str, Tensor], Tensor]:
    """Draw the answers of a layer whose channels have these accuracies; the images are in the order of their margin."""
    draw = torch.Generator().manual_seed(seed)
    hard = torch.rand(images, generator=draw)
    hard = hard[(hard - 0.6).abs().argsort()]
    noise = 0.1 * torch.randn(len(accuracies), images, generator=draw)
    return {"conv": hard + noise < torch.tensor(accuracies)[:, None]}, hard < 0.6


def race(answers: dict[str, Tensor], base: Tensor, places: int, delta: float, **given_race) -> Elimination:
    samples, ablation = given(answers, base)
    runner = given_race.get("race") or begin({name: len(rows) for name, rows in answers.items()}, {"conv": places})
    keep = given_race.get("keep", lambda race: None)
    run(runner, samples, len(base), ablation, delta, keep, lambda name: None)
    return runner


def exact(answers: dict[str, Tensor], base: Tensor, sign: int):
    samples, ablation = given(answers, base)
    filters = {name: range(len(rows)) for name, rows in answers.items()}
    scores = count(samples, filters, ablation, Counts(), lambda counts: None, lambda name: None).scores(sign)
    return rank("given", scores, descending=sign > 0)


@pytest.mark.parametrize("sign", [-1, 1])
def test_while_no_filter_leaves_every_score_is_exact(sign, monkeypatch):
    monkeypatch.setattr(LayerElimination, "leave", lambda lane, delta, unread: None)
    answers, base = draws(0, [0.59, 0.62, 0.6, 0.61, 0.6, 0.63])
    found = race(answers, base, 2, 0.05)
    assert found.ranking("given", sign, len(base)).order == exact(answers, base, sign).order
    scores = found.ranking("given", sign, len(base)).scores["conv"]
    assert scores == pytest.approx(exact(answers, base, sign).scores["conv"], abs=1e-12)
    assert found.passes() == 6 * 2000


def test_filters_far_from_the_cut_leave_early_and_on_the_right_side():
    answers, base = draws(1, [0.55, 0.65, 0.55, 0.65, 0.55, 0.599, 0.601])
    found = race(answers, base, 3, 0.01)
    assert set(found.ranking("given", 1, len(base)).order["conv"][:3]) == {1, 3, 6}
    images = found.lanes["conv"].images.tolist()
    assert max(images[:5]) <= 500, "those have left"
    assert images[5] == images[6] > 500, "these two are close to the cut"
    assert found.passes() == sum(images) < 7 * 2000 / 2
    exact_scores = exact(answers, base, 1).scores["conv"]
    for score, expected in zip(found.ranking("given", 1, len(base)).scores["conv"], exact_scores, strict=True):
        assert score * expected >= 0
        assert abs(score) <= abs(expected) + 0.002, "what has not been read counts as unchanged"


def test_wrong_sides_are_as_rare_as_allowed():
    wrong = races = spared = 0
    for seed in range(60):
        answers, base = draws(seed, [0.5, 0.53, 0.56, 0.59, 0.62, 0.65], images=1500)
        found = race(answers, base, 3, 0.02)
        wrong += len(
            set(found.ranking("given", 1, len(base)).order["conv"][:3]) - set(exact(answers, base, 1).order["conv"][:3])
        )
        races, spared = races + 6, spared + 6 * 1500 - found.passes()
    assert wrong <= 0.05 * races, "an error probability of 0.02 at a time, looked at many times"
    assert spared > 0.5 * 60 * 6 * 1500, "the races are worth it"


def test_equal_filters_race_to_the_end_and_are_ranked_by_channel():
    answers, base = draws(2, [0.6, 0.2])
    answers = {"conv": answers["conv"][[1, 0, 0, 0]]}
    found = race(answers, base, 2, 0.05)
    assert found.ranking("given", 1, len(base)).order["conv"] == [1, 2, 3, 0]
    assert found.lanes["conv"].images.tolist()[1:] == [2000] * 3


@pytest.mark.parametrize("places", [0, 3])
def test_a_cut_at_an_end_needs_no_race(places):
    answers, base = draws(3, [0.5, 0.6, 0.7])
    found = race(answers, base, places, 0.05)
    assert found.passes() == 3 * SIZE


def test_a_resumed_race_ends_as_one_that_was_not_interrupted():
    answers, base = draws(4, [0.55, 0.57, 0.6, 0.61, 0.8])
    kept: list[dict] = []
    whole = race(answers, base, 2, 0.05, keep=lambda race: kept.append(copy.deepcopy(race.state())))
    for place in (0, 4, 5, 7, len(kept) - 1):
        again = begin({"conv": 5}, {"conv": 2})
        again.load(copy.deepcopy(kept[place]))
        counted: list[int] = []
        race(answers, base, 2, 0.05, race=again, keep=lambda race, counted=counted: counted.append(1))
        assert again.ranking("given", -1, len(base)) == whole.ranking("given", -1, len(base))
        assert len(counted) == len(kept) - place - 1
