"""Aligned pseudo-labels and self-adaptive thresholds against their plain definitions."""

from __future__ import annotations

import math

import pytest
import torch

from deeppatch.hybrid.confidence import PseudoLabelling

PRIOR = [0.2, 0.3, 0.5]
MOMENTUM = 0.9


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [(2 * torch.randn(8, 3, generator=generator)).softmax(1) for _ in range(4)]


@pytest.mark.parametrize("weighting", ["threshold", "soft"])
def test_labels_and_weights_equal_a_plain_computation(weighting):
    found = PseudoLabelling(torch.tensor(PRIOR), MOMENTUM, weighting)
    predicted, tau, shares, variance = list(PRIOR), 1 / 3, [1 / 3] * 3, 1.0

    def moved(before: float, now: float) -> float:
        return MOMENTUM * before + (1 - MOMENTUM) * now

    for batch in batches():
        labels, weights = found.label(batch)
        rows = batch.tolist()
        predicted = [moved(predicted[c], sum(row[c] for row in rows) / 8) for c in range(3)]
        aligned = [[row[c] * PRIOR[c] / predicted[c] for c in range(3)] for row in rows]
        aligned = [[value / sum(row) for value in row] for row in aligned]
        most = [max(row) for row in aligned]
        tau = moved(tau, sum(most) / 8)
        shares = [moved(shares[c], sum(row[c] for row in aligned) / 8) for c in range(3)]
        variance = moved(variance, sum((each - sum(most) / 8) ** 2 for each in most) / 8)
        plain = [row.index(max(row)) for row in aligned]
        assert labels.tolist() == plain
        hard = [float(m > shares[c] / max(shares) * tau) for m, c in zip(most, plain, strict=True)]
        soft = [1.0 if m >= tau else math.exp(-((m - tau) ** 2) / (2 * variance)) for m in most]
        assert weights.tolist() == pytest.approx(hard if weighting == "threshold" else soft, abs=1e-5)
    assert 0 < found.thresholds.max() == pytest.approx(tau, abs=1e-5)


def test_statistics_may_begin_with_those_of_a_network_and_are_carried_over_a_restart():
    first, second = (PseudoLabelling(torch.tensor(PRIOR), MOMENTUM) for _ in range(2))
    before = first.confidence.item()
    first.start_from(torch.cat(batches()))
    assert first.confidence.item() > before == pytest.approx(1 / 3)
    assert torch.allclose(first.predicted, torch.cat(batches()).mean(0))
    second.load_state_dict(first.state_dict())
    for batch in batches():
        assert [each.tolist() for each in first.label(batch)] == [each.tolist() for each in second.label(batch)]
    with pytest.raises(ValueError, match="one of threshold, soft"):
        PseudoLabelling(torch.tensor(PRIOR), MOMENTUM, "hard")
