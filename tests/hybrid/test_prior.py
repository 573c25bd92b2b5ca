"""The class prior of a pool: EM and the confusion matrix against plain definitions, and the decision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.hybrid.prior import CORRECTED, NO_SHIFT, REFUSED, estimate_prior, pool_prior, prior_by_confusion
from deeppatch.hybrid.prior_correction import correct_prior, logits_of
from deeppatch.metrics.logit_scaling import bias_corrected_temperature

CLASSES = 4
OF_VAL, OF_POOL = torch.tensor([0.4, 0.3, 0.25, 0.05]), torch.tensor([0.1, 0.2, 0.3, 0.4])


def drawn(prior: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of Gaussian classes: the posteriors for OF_VAL, overconfident and with a bias."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(prior, count, replacement=True, generator=generator)
    found = torch.randn(count, CLASSES, generator=generator) + 2 * F.one_hot(labels, CLASSES)
    return 2.5 * (2 * found + OF_VAL.log()) + torch.tensor([1.0, 0.0, -1.0, 0.5]), labels


def test_em_equals_its_plain_definition_and_finds_the_prior_of_synthetic_posteriors():
    logits, labels = drawn(OF_POOL, 6000, 2)
    posteriors = F.softmax((logits - torch.tensor([1.0, 0.0, -1.0, 0.5])).double() / 2.5, 1)
    found = pool_prior(posteriors, OF_VAL)
    shares = OF_VAL.double()
    for _ in range(10_000):
        responsibilities = posteriors * shares / OF_VAL
        responsibilities = responsibilities / responsibilities.sum(1, keepdim=True)
        before, shares = shares, responsibilities.mean(0)
        if (shares - before).abs().max() < 1e-6:
            break
    assert torch.allclose(found, shares, atol=1e-9)
    assert torch.allclose(found.float(), OF_POOL, atol=0.02)
    assert found.sum().item() == pytest.approx(1)


def test_the_confusion_matrix_recovers_the_prior_where_it_is_exact():
    rates = torch.full((CLASSES, CLASSES), 0.1) + 0.6 * torch.eye(CLASSES)  # P(predicted | class)
    found = prior_by_confusion(rates * OF_VAL, rates @ OF_POOL)
    assert torch.allclose(found.float(), OF_POOL, atol=1e-5)


def test_a_shift_of_classes_is_corrected_and_the_interval_has_the_truth():
    val, labels = drawn(OF_VAL, 2000, 3)
    logits, truth = drawn(OF_POOL, 4000, 4)
    found = estimate_prior(val, labels, logits, torch.Generator().manual_seed(1))
    assert found.decision == CORRECTED
    assert bool(((found.low < found.pool) & (found.pool < found.high)).all())
    assert float((found.pool.float() - OF_POOL).abs().max()) < 0.03
    before, after = ((each.argmax(1) == truth).float().mean() for each in (logits, logits + found.correction))
    assert after > before + 0.02
    assert torch.equal(found.target, found.pool)


def test_without_a_shift_nothing_changes_and_another_shift_is_refused_unless_it_is_trusted():
    val, labels = drawn(OF_VAL, 2000, 3)
    same = estimate_prior(val, labels, drawn(OF_VAL, 1500, 4)[0], torch.Generator().manual_seed(1))
    assert same.decision == NO_SHIFT
    assert same.reason == "no shift of the classes could be shown with 2000 images of val and 1500 of the pool"
    assert not same.correction.any()
    assert torch.equal(same.target, same.train)
    other = 0.3 * drawn(OF_VAL, 1500, 4)[0] + torch.tensor([3.0, -2.0, 0.0, 1.0])  # not only classes
    for trust, decision in ((False, REFUSED), (True, CORRECTED)):
        found = estimate_prior(val, labels, other, torch.Generator().manual_seed(1), trust=trust)
        assert found.decision == decision
        assert bool(found.correction.any()) == trust
        assert "% would be if only the shares of the classes differed" in found.reason


def test_a_class_that_is_never_predicted_does_not_make_the_estimates_contradict_each_other():
    val, labels = drawn(OF_VAL, 2000, 3)
    unseen = torch.tensor([0.0, 0.0, 0.0, -40.0])  # class 3 is never predicted, its posterior still says something
    found = estimate_prior(val + unseen, labels, drawn(OF_POOL, 4000, 4)[0] + unseen, torch.Generator().manual_seed(1))
    assert not ((val + unseen).argmax(1) == 3).any()
    assert found.decision == CORRECTED
    assert found.pool[3].item() == pytest.approx(0.4, abs=0.04)


def network(*, bias: bool = True) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=bias))


def images(count: int, shares: list[float], seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor(shares), count, replacement=True, generator=generator)
    noise = 60 * torch.randn(count, 3, 2, 2, generator=generator)
    return Images((70 + 60 * labels.view(-1, 1, 1, 1) + noise).clamp(0, 255).to(torch.uint8), labels)


def test_the_correction_is_in_the_last_bias_and_can_be_given():
    model, val = network().train(), images(300, [0.6, 0.3, 0.1], 1)
    data, pool = Data(val, val, val, ("a", "b", "c")), images(400, [0.1, 0.3, 0.6], 2)
    known = torch.tensor([0.2, 0.3, 0.5])
    corrected = correct_prior(model, data, pool.pixels, prior=known)
    assert corrected.prior.decision == CORRECTED
    added = logits_of(corrected, pool.pixels) - logits_of(model, pool.pixels)
    assert torch.allclose(added, corrected.prior.correction.float().expand(400, 3), atol=1e-5)
    assert torch.equal(corrected[1].weight, model[1].weight)
    assert model.training
    assert not corrected.training
    calibration = bias_corrected_temperature(logits_of(model, val.pixels), val.labels)
    change = calibration.biases + known.double().log() - corrected.prior.train.log()
    assert torch.allclose(corrected.prior.correction, calibration.temperature * change)
    with pytest.raises(UserError, match="has no bias to which the correction of the prior could be added"):
        correct_prior(network(bias=False), data, pool.pixels)
    with pytest.raises(UserError, match="give 3 shares of classes that sum to 1"):
        correct_prior(model, data, pool.pixels, prior=torch.tensor([0.5, 0.6, 0.1]))
