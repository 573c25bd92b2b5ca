"""Whether only classes have shifted: what is refused and what is not, and the bootstrap against refits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from deeppatch.hybrid.prior import CORRECTED, NO_SHIFT, REFUSED, PriorEstimate, estimate_prior, interval_of, pool_prior
from deeppatch.hybrid.prior_check import LARGE, NEGLIGIBLE, compare_distributions, statistics_of
from deeppatch.hybrid.prior_draws import counts_of_draws, draw_priors, moves_of_calibration, moves_of_prior
from deeppatch.metrics.logit_scaling import bias_corrected_temperature

CLASSES = 4
OF_VAL, OF_POOL = torch.tensor([0.4, 0.3, 0.25, 0.05]), torch.tensor([0.1, 0.2, 0.3, 0.4])


def drawn(prior: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Overconfident logits and labels of Gaussian classes, whose posteriors are for OF_VAL."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(prior, count, replacement=True, generator=generator)
    found = torch.randn(count, CLASSES, generator=generator) + 2 * F.one_hot(labels, CLASSES)
    return 2.5 * (2 * found + OF_VAL.log()), labels


def estimate(pool: torch.Tensor, *, val: int = 1000, trust: bool = False) -> PriorEstimate:
    return estimate_prior(*drawn(OF_VAL, val, 3), pool, torch.Generator().manual_seed(1), trust=trust)


def noise(logits: torch.Tensor) -> torch.Tensor:
    """Nearly the same logits for all images, as a network has them for pixels at random."""
    return logits.median(0).values + 0.1 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))


OTHERWISE = {
    "noise": noise,
    "less certain": lambda logits: 0.6 * logits,  # as of blurred images
    "more certain": lambda logits: 1.6 * logits,
    "a third is noise": lambda logits: torch.where(
        torch.arange(len(logits)).unsqueeze(1) % 3 == 0, noise(logits), logits
    ),
    "other classes": lambda logits: logits[:, [0, 0, 1, 1]] + torch.tensor([0.0, -1.0, 0.0, -1.0]),
    "larger by one number": lambda logits: logits + 6,  # no posterior changes: only the logsumexp tells
}


@pytest.mark.parametrize("shares", [OF_VAL, OF_POOL], ids=["same classes", "other shares"])
@pytest.mark.parametrize("kind", OTHERWISE)
def test_a_shift_that_is_not_of_classes_alone_is_refused(kind, shares):
    found = estimate(OTHERWISE[kind](drawn(shares, 600, 4)[0]))
    assert found.decision == REFUSED
    assert "if only the shares of the classes differed" in found.reason
    assert not found.correction.any()


def test_what_is_refused_is_corrected_where_that_is_trusted_and_the_reason_says_both():
    found = estimate(OTHERWISE["less certain"](drawn(OF_POOL, 600, 4)[0]), trust=True)
    assert found.decision == CORRECTED
    assert "if only the shares of the classes differed; corrected because this was asked for" in found.reason


def test_a_shift_of_classes_is_not_refused():
    for seed, shares in enumerate([[0.1, 0.2, 0.3, 0.4], [0, 0, 0.5, 0.5], [0.9, 0.05, 0.05, 0], [0, 0, 0, 1]]):
        assert estimate(drawn(torch.tensor(shares, dtype=torch.float32), 600, 5 + seed)[0]).decision == CORRECTED
    for seed in range(3):  # with few images of val, too
        val, logits = drawn(OF_VAL, 60, 20 + seed), drawn(OF_POOL, 600, 30 + seed)[0]
        assert estimate_prior(*val, logits, torch.Generator().manual_seed(1)).decision == CORRECTED


def test_without_a_shift_nothing_is_refused_and_a_negligible_one_of_a_large_pool_neither():
    for seed in (5, 6, 7):
        assert estimate(drawn(OF_VAL, 500, seed)[0]).decision == NO_SHIFT
    assert estimate(1.02 * drawn(OF_POOL, 20_000, 4)[0]).decision == CORRECTED


def test_a_class_without_an_image_in_val_is_allowed_its_share_and_most_of_a_pool_is_not():
    logits, labels = drawn(OF_VAL, 1000, 3)
    there = labels != 3
    for share, decision in ((0.1, CORRECTED), (0.9, REFUSED)):
        pool = drawn(torch.tensor([0.0, 0.0, 1 - share, share]), 500, 4)[0]
        far = pool + 30 * (pool.argmax(1, keepdim=True) == 3)  # it looks like nothing in val
        found = estimate_prior(logits[there], labels[there], far, torch.Generator().manual_seed(1))
        assert found.decision == decision


def compared(pool_logits: torch.Tensor):
    val, generator = drawn(OF_VAL, 300, 3), torch.Generator().manual_seed(1)
    calibration = bias_corrected_temperature(*val)
    train = calibration.posteriors(val[0]).mean(0)
    ratios = calibration.posteriors(pool_logits) / train
    pool = pool_prior(ratios * train, train)
    draws = draw_priors(calibration, val, pool_logits, ratios, (train, pool), generator)
    return calibration, val, pool, draws, compare_distributions(calibration, val, pool_logits, pool, draws, generator)


def test_the_distance_is_that_of_kolmogorov_and_smirnov_between_pool_and_weighted_val():
    logits = drawn(OF_POOL, 300, 4)[0]
    calibration, (of_val, labels), pool, _, found = compared(logits)
    statistics = [statistics_of(calibration, each) for each in (of_val, logits)]
    for comparison, (name, values) in zip(found, statistics[0].items(), strict=True):
        largest, at_cell = 0.0, -1.0
        for threshold in [*values.tolist(), *statistics[1][name].tolist(), comparison.at]:
            below = (values <= threshold).double()
            weighted = sum(
                pool[c] * (below[labels == c].sum() + below.mean()) / ((labels == c).sum() + 1) for c in range(CLASSES)
            )
            distance = abs((statistics[1][name] <= threshold).double().mean() - weighted).item()
            largest, at_cell = max(largest, distance), distance
        assert comparison.distance == pytest.approx(at_cell, abs=1e-9)
        assert largest - 0.02 <= comparison.distance <= largest + 1e-9
        assert NEGLIGIBLE < comparison.bound < LARGE


def test_moves_of_the_calibration_are_those_of_refits():
    (logits, labels), generator = drawn(OF_VAL, 2000, 3), torch.Generator().manual_seed(1)
    calibration = bias_corrected_temperature(logits, labels)
    train = calibration.posteriors(logits).mean(0)
    counts = counts_of_draws(2000, generator)[:5]
    scales, biases = moves_of_calibration(calibration, logits, labels, counts, train)
    for draw, scale, bias in zip(counts, scales, biases, strict=True):
        again = torch.arange(2000).repeat_interleave(draw.long())
        refit = bias_corrected_temperature(logits[again], labels[again])
        shares = refit.posteriors(logits[again]).mean(0)
        expected = (refit.biases - shares.log()) - (calibration.biases - train.log())
        assert 1 / refit.temperature - 1 / calibration.temperature == pytest.approx(scale.item(), abs=0.01)
        assert torch.allclose(bias - bias[0], expected - expected[0], atol=0.02)
    assert biases.std() > 0.03


def test_moves_of_the_prior_are_those_of_em_after_a_small_move():
    logits = drawn(OF_POOL, 1500, 4)[0]
    ratios = F.softmax(logits.double() / 2.5, 1) / OF_VAL
    pool = pool_prior(ratios * OF_VAL, OF_VAL)
    scales, biases = torch.tensor([0.01, 0.0]).double(), torch.tensor([[0.0] * 4, [0.02, 0.0, -0.03, 0.01]]).double()
    moved = moves_of_prior(ratios, logits, pool, scales, biases)
    for scale, bias, move in zip(scales, biases, moved, strict=True):
        other = ratios * torch.exp(scale * logits.double() + bias)
        assert torch.allclose(pool_prior(other * OF_VAL, OF_VAL) - pool, move, atol=3e-4)
        assert move.abs().max() > 1e-3


def test_the_interval_holds_the_estimate_and_covers_the_truth_although_val_is_small():
    truth = torch.tensor([0.3, 0.3, 0.4, 0.0])
    covered, fixed = [], []
    for seed in range(25):
        val, logits = drawn(OF_VAL, 100, seed), drawn(truth, 400, 100 + seed)[0]
        calibration = bias_corrected_temperature(*val)
        train = calibration.posteriors(val[0]).mean(0)
        ratios = calibration.posteriors(logits) / train
        pool = pool_prior(ratios * train, train)
        draws = draw_priors(calibration, val, logits, ratios, (train, pool), torch.Generator().manual_seed(seed))
        low, high = interval_of(draws.priors, pool)
        assert bool(((low <= pool) & (pool <= high)).all())
        covered.append((low <= truth) & (truth <= high))
        fixed.append((truth - pool).abs() <= 1.96 * (pool * (1 - pool) / 400).sqrt())  # as if each label were known
    assert 0.88 <= torch.stack(covered)[:, :3].double().mean() <= 0.99
    assert torch.stack(fixed)[:, :3].double().mean() < 0.85
    assert torch.stack(covered)[:, 3].double().mean() > 0.9


def test_an_interval_near_zero_holds_its_estimate():
    low, high = interval_of(
        torch.tensor([[1e-28, 1.0], [3e-24, 1.0]]).double(), torch.tensor([1.6e-21, 1.0], dtype=torch.float64)
    )
    assert low.tolist() == [0.0, 1.0]
    assert high.tolist() == [1.6e-21, 1.0]
