"""Compositions from cached logits against the definition: every composition, one by one (Qi et al., ASE 2022)."""

from __future__ import annotations

import itertools
from dataclasses import astuple

import pytest
import torch

from deeppatch.modular import composition
from deeppatch.modular.composition import Candidates, FitnessWeights, Rating, beam_search, dissimilarity
from deeppatch.modular.presets import sizes

CANDIDATES, SAMPLES = 3, 40


def plain_dissimilarity(one, two):
    return 1 - (one & two).sum().item() / (one | two).sum().item()


def plain_beam(logits, labels, kernels, order, weights, thresholds, winners, fewest, most):
    """The definition: members by class in merged order, all of them rated alone."""
    lists = [[((number, i),) for i in range(CANDIDATES)] for number in order]
    first = {}
    while len(lists) > 1:
        merged = []
        for a, b in zip(lists[::2], lists[1::2], strict=False):
            every = [u + v for u in a for v in b]
            classes = [number for number, _ in every[0]]
            own = torch.isin(labels, torch.tensor(classes))
            rated = []
            for members in every:
                scores = torch.stack([logits[number, i] for number, i in members])[:, own]
                answer = torch.tensor(classes)[scores.max(0).indices]  # the first of equal ones
                correct = (answer == labels[own]).sum().item()
                pairs = list(itertools.combinations(members, 2))
                dissimilarities = sum(plain_dissimilarity(kernels[one], kernels[two]) for one, two in pairs) / len(
                    pairs
                )
                dropped = 1 - sum(kernels[member].float().mean().item() for member in members) / len(members)
                value = (
                    weights.accuracy * correct / own.sum().item()
                    + weights.dissimilarity * dissimilarities
                    + weights.size * dropped
                )
                rated.append((correct, value, members))
            for side in (a, b):
                if len(side[0]) == 1:
                    for (only,) in side:
                        first[only] = max(value for _, value, members in rated if only in members)
            good = sum(correct >= thresholds[len(classes)] * own.sum().item() for correct, _, _ in rated)
            kept = sorted(rated, key=lambda each: -each[0])[: min(most, max(fewest, good))]
            kept.sort(key=lambda each: -round(each[1], 5))
            if winners is not None:
                winner = [each for each in rated if all(winners[number] == i for number, i in each[2])]
                kept += [each for each in winner if each[2] not in [other[2] for other in kept]]
            merged.append([members for _, _, members in kept])
            last = kept
        lists = merged + lists[len(lists) - len(lists) % 2 :]
    fitness = torch.zeros(len(order), CANDIDATES)
    for _, value, members in last:
        for number, i in members:
            fitness[number, i] = max(fitness[number, i], value)
    return fitness, first, last


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [5, 10])
@pytest.mark.parametrize("winners", [False, True], ids=["generation 0", "later"])
@pytest.mark.parametrize("size", [0.0, 0.3])
def test_the_beam_is_that_of_the_definition(monkeypatch, seed, classes, winners, size):
    fewest, most = 4, 7
    monkeypatch.setattr(composition, "MIN_KEPT", fewest)
    monkeypatch.setattr(composition, "MAX_KEPT", most)
    torch.manual_seed(seed)
    labels = torch.randint(classes, (SAMPLES,))
    logits = torch.randn(classes, CANDIDATES, SAMPLES)
    logits[torch.arange(classes)] += 1.5 * (labels == torch.arange(classes)[:, None])[:, None]
    logits = (logits * 3).round() / 3  # ties
    kernels = torch.rand(classes, CANDIDATES, 30) < 0.6
    order = torch.randperm(classes).tolist()
    named = torch.randint(CANDIDATES, (classes,)).tolist() if winners else None
    thresholds = dict.fromkeys(sizes(classes), 0.8)
    dissimilarities = dissimilarity(kernels.flatten(0, 1)).view(classes, CANDIDATES, classes, CANDIDATES)
    shares = kernels.float().mean(2)
    weights = FitnessWeights(0.95, 0.1, size)
    rating = Rating(weights, thresholds, named)
    fitness, accuracy = beam_search(Candidates(logits, labels, dissimilarities, shares), order, rating)
    told, asked = torch.full_like(logits, torch.nan), []

    def ask(number, members, met):
        asked.append((number, len(members), len(met)))
        samples = torch.isin(labels, torch.tensor(met))
        told[number, members.unsqueeze(1), samples.nonzero().T] = logits[number][members][:, samples]

    again = beam_search(Candidates(told, labels, dissimilarities, shares), order, rating, ask)
    assert all(torch.equal(*both) for both in zip(astuple(again[0]), astuple(fitness), strict=True))
    assert again[1] == accuracy
    assert told.isnan().any(), "candidates that drop out are not asked for everything"
    assert {members for _, members, met in asked if met == 2} == {CANDIDATES}
    expected, first, last = plain_beam(logits, labels, kernels, order, weights, thresholds, named, fewest, most)
    assert torch.allclose(fitness.last, expected, atol=1e-5)
    for (number, i), value in first.items():
        assert fitness.first[number, i].item() == pytest.approx(value, abs=1e-5)
    assert accuracy == pytest.approx(last[0][0] / SAMPLES)
    ranked = fitness.ranked()
    for number in range(classes):
        keys = [
            (fitness.last[number, i].item(), fitness.first[number, i].item(), fitness.auroc[number, i].item(), -i)
            for i in range(CANDIDATES)
        ]
        assert ranked[number].tolist() == sorted(range(CANDIDATES), key=lambda i: keys[i], reverse=True)


def test_one_product_gives_every_jaccard_index():
    torch.manual_seed(0)
    kernels = torch.rand(20, 50) < 0.4
    found = dissimilarity(kernels)
    for i, j in itertools.product(range(20), repeat=2):
        assert found[i, j].item() == pytest.approx(plain_dissimilarity(kernels[i], kernels[j]), abs=1e-6)


def test_a_tied_kernel_counts_once_for_each_convolution():
    kernels = torch.tensor([[True, True, False], [True, False, True]])
    assert dissimilarity(kernels, torch.tensor([2.0, 1, 1]))[0, 1].item() == pytest.approx(1 - 2 / 4)


def test_more_samples_than_a_byte_counts():
    torch.manual_seed(1)
    a, b = torch.randn(4, 700), torch.randn(5, 700)
    assert torch.equal(composition._count_not_less(a, b), (a[:, None] >= b[None]).sum(2))


def test_a_candidate_alone_is_rated_by_its_auroc():
    from sklearn.metrics import roc_auc_score

    torch.manual_seed(2)
    scores, positive = (torch.randn(6, 80) * 4).round(), torch.rand(80) < 0.3
    expected = [roc_auc_score(positive, row) for row in scores]
    assert composition._auroc(scores, positive).tolist() == pytest.approx(expected, abs=1e-6)


def test_merges_lead_to_the_published_sizes():
    assert sizes(10) == [2, 4, 8, 10]
    assert sizes(5) == [2, 4, 5]
