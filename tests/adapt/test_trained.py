"""One step of Tent, ETA, EATA, SAR and ROID against plain definitions, and what their settings mean."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from deeppatch.adapt.augmentation import Augmentation
from deeppatch.adapt.eata import EataSettings
from deeppatch.adapt.methods import adapter
from deeppatch.adapt.roid import RoidSettings, correct_prior
from deeppatch.adapt.sar import SarSettings
from deeppatch.adapt.tent import TentSettings
from deeppatch.errors import UserError


def with_batch_statistics(model):
    """Return a copy that normalises by its batch, and its scales and shifts."""
    copied = copy.deepcopy(model).train()
    return copied, [value for layer in copied if isinstance(layer, nn.BatchNorm2d) for value in layer.parameters()]


def entropies(logits):
    shares = logits.softmax(1)
    return -(shares * shares.log()).sum(1)


def first_adam_step(parameters, gradients, lr):
    """Return the parameters after the first step of Adam: each moves by the rate, against its gradient's sign."""
    return [p - lr * g / (g.abs() + 1e-8) for p, g in zip(parameters, gradients, strict=True)]


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-4, atol=1e-5)


def test_tent_descends_the_mean_entropy_and_answers_before(model, batches):
    network, parameters = with_batch_statistics(model)
    logits = network(batches[0])
    gradients = torch.autograd.grad(entropies(logits).mean(), parameters)
    tent = adapter("tent", model, TentSettings(lr=0.01))
    torch.testing.assert_close(tent.predict(batches[0]), logits.detach())
    assert_close(tent.parameters, first_adam_step(parameters, gradients, 0.01))
    assert len(tent.parameters) == 4


@pytest.mark.parametrize(("name", "rate"), [("tent", {"lr": 0.0}), ("roid", {"lr": 0.0, "source": 0.0})])
def test_at_rate_zero_it_is_bn_1(name, rate, model, batches):
    settings = {"tent": TentSettings, "roid": RoidSettings}[name](**rate)
    method, still = adapter(name, model, settings), adapter("bn-1", model)
    for batch in batches:
        expected = still.predict(batch)
        found = method.predict(batch)
        torch.testing.assert_close(found, expected if name == "tent" else correct_prior(expected))


def test_eta_keeps_reliable_and_diverse_samples(model, batches):
    settings = EataSettings(lr=0.01, margin=0.7, similarity=0.99)
    eta = adapter("eta", model, settings)
    limit = 0.7 * math.log(4)
    mean, numbers = None, []
    for batch in batches:
        network, parameters = with_batch_statistics(model)
        for own, now in zip(parameters, eta.parameters, strict=True):
            own.data.copy_(now)
        logits = network(batch)
        shares = logits.softmax(1).detach()
        kept = [
            i
            for i, each in enumerate(entropies(logits))
            if each < limit and (mean is None or abs(mean @ shares[i]) / mean.norm() / shares[i].norm() < 0.99)
        ]
        numbers.append(len(kept))
        if kept:
            found = shares[kept].mean(0)
            mean = found if mean is None else 0.9 * mean + 0.1 * found
            uncertain = entropies(logits)[kept]
            loss = sum(math.exp(limit - each.item()) * each for each in uncertain) / len(kept)
            gradients = torch.autograd.grad(loss, parameters)
            eta.optimizer = eta.new_optimizer()  # so that each step is Adam's first
            expected = first_adam_step(parameters, gradients, 0.01)
        else:
            expected = parameters
        eta.predict(batch)
        assert_close(eta.parameters, expected)
    assert all(0 < number < 9 for number in numbers), "some samples are kept, others are not"
    torch.testing.assert_close(eta.mean, mean)


def test_eta_keeps_everything_or_nothing_at_the_ends_of_its_settings(model, batches):
    everything = adapter("eta", model, EataSettings(margin=1.0, similarity=1.1))
    for batch in batches:
        logits = everything.predict(batch)
        assert bool(everything.select(logits, entropies(logits) < math.log(4)).all())
    assert everything.passes.train == 27
    nothing = adapter("eta", model, EataSettings(margin=0.0))
    nothing.predict(batches[0])
    assert (nothing.passes.forward, nothing.passes.train, nothing.mean) == (9, 0, None)
    assert_close(nothing.parameters, nothing.start)


def test_importances_are_squares_of_mean_gradients_and_the_penalty_holds(model, batches):
    source = torch.cat(batches)[:20]
    settings = EataSettings(lr=0.01, margin=1.0, similarity=1.1, fisher_images=18, fisher_batch=9, weight=3.0)
    eata = adapter("eata", model, settings, source=source)
    network, parameters = with_batch_statistics(model)
    expected = [torch.zeros_like(each) for each in parameters]
    for batch in (source[:9], source[9:18]):
        logits = network(batch)
        loss = -logits.log_softmax(1)[range(9), logits.argmax(1)].mean()
        for total, gradient in zip(expected, torch.autograd.grad(loss, parameters), strict=True):
            total.add_(gradient**2 / 2)
    assert_close(eata.importances, expected)
    with torch.no_grad():
        eata.parameters[0].add_(0.5)
    assert eata.penalty().item() == pytest.approx(3 * 0.25 * expected[0].sum().item(), rel=1e-4)


def test_without_importances_it_is_eta(model, batches):
    settings = EataSettings(lr=0.01, margin=1.0, similarity=1.1)
    eta, eata = adapter("eta", model, settings), adapter("eata", model, settings, source=batches[0])
    held = adapter("eata", model, EataSettings(lr=0.01, margin=1.0, similarity=1.1, weight=1e6), source=batches[0])
    eata.importances = [torch.zeros_like(each) for each in eata.importances]
    for batch in batches:
        expected = eta.predict(batch)
        assert torch.equal(eata.predict(batch), expected)
        held.predict(batch)
    assert_close(eata.parameters, eta.parameters)
    assert not torch.allclose(held.parameters[0], eta.parameters[0])


def test_sar_steps_from_where_it_was_with_the_gradient_from_nearby(model, batches):
    settings = SarSettings(lr=0.1, margin=0.6, reset_below=0.0)
    sar = adapter("sar", model, settings)
    network, parameters = with_batch_statistics(model)
    limit = 0.6 * math.log(4)
    first = entropies(network(batches[0]))
    kept = first < limit
    gradients = torch.autograd.grad(first[kept].mean(), parameters)
    length = sum((each**2).sum() for each in gradients).sqrt()
    nearby, moved = with_batch_statistics(model)
    for parameter, gradient in zip(moved, gradients, strict=True):
        parameter.data += 0.05 * gradient / length
    second = entropies(nearby(batches[0]))
    chosen = kept & (second < limit)
    assert 0 < chosen.sum() < 9
    expected = [p - 0.1 * g for p, g in zip(parameters, torch.autograd.grad(second[chosen].mean(), moved), strict=True)]
    sar.predict(batches[0])
    assert_close(sar.parameters, expected)
    assert sar.passes.train == 18
    assert sar.mean_entropy == pytest.approx(second[chosen].mean().item(), rel=1e-5)
    assert sar.resets == 0


def test_sar_drops_samples_that_are_not_reliable_nearby(model, batches):
    limit = 0.6 * math.log(4)
    sar = adapter("sar", model, SarSettings(lr=0.1, margin=0.6, radius=0.5, reset_below=0.0))
    for batch in batches:
        network, parameters = with_batch_statistics(model)
        first = entropies(network(batch))
        gradients = torch.autograd.grad(first[first < limit].mean(), parameters)
        length = sum((each**2).sum() for each in gradients).sqrt()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(0.5 * gradient / length)
        second = entropies(network(batch))
        kept = (first < limit) & (second < limit)
        if 0 < kept.sum() < (first < limit).sum():
            break
    else:
        raise AssertionError("in no batch one of the two limits alone decides")
    sar.predict(batch)
    assert sar.mean_entropy == pytest.approx(second[kept].mean().item(), rel=1e-4)


def test_sar_counts_its_resets_and_then_answers_as_bn_1(model, batches):
    sure = copy.deepcopy(model)
    sure[-1].weight.data.mul_(100)
    sar, still = adapter("sar", sure), adapter("bn-1", sure)
    for batch in batches:
        torch.testing.assert_close(sar.predict(batch), still.predict(batch))
    assert sar.resets == 3
    assert sar.mean_entropy is None
    sar.reset()
    assert sar.resets == 3, "a reset from outside is not the method's own"
    unsure = copy.deepcopy(model)
    for parameter in unsure[-1].parameters():
        parameter.data.mul_(0.001)
    sar = adapter("sar", unsure)
    sar.predict(batches[0])
    assert (sar.resets, sar.passes.forward, sar.passes.train) == (0, 9, 0), "no sample is reliable: no step"


def test_sar_leaves_a_fourth_stage_out(model):
    staged = nn.Sequential()
    for number, name in enumerate(("layer1", "norm", "r", "layer3", "layer4", "s", "pool", "flat", "fc")):
        staged.add_module(name, model[number])
    assert [len(each) for each in adapter("sar", staged).parameters] == [6, 6]


def plain_roid(network, parameters, batch, view):
    """Return the gradients of ROID's loss at a uniform mean prediction, over a configured batch of 200."""
    logits = network(batch)
    shares = logits.softmax(1)
    with torch.no_grad():
        uniform = torch.full((4,), 0.25)
        apart = torch.stack([1 - uniform @ each / uniform.norm() / each.norm() for each in shares])
        apart = (apart - apart.min()) / (apart.max() - apart.min())
        certain = -entropies(logits)
        certain = (certain - certain.min()) / (certain.max() - certain.min())
        weights = [math.exp(3 * d * c) if d >= apart.mean() else 0 for d, c in zip(apart, certain, strict=True)]
    chosen = [number for number, weight in enumerate(weights) if weight]
    other = network(view(batch[chosen], torch.Generator())).softmax(1)
    loss = 0
    for weight, each in zip(weights, shares, strict=True):
        for p in each.clamp(max=0.99):
            loss = loss - weight * p * (p / (1 - p) + 1e-5).log() / 200
    for number, again in zip(chosen, other, strict=True):
        cross = -(shares[number] * again.log()).sum() / 2 - (again * shares[number].log()).sum() / 2
        loss = loss + weights[number] * cross / 200
    return chosen, torch.autograd.grad(loss, parameters)


def test_roid_steps_by_its_loss_and_mixes_the_source_in(model, batches, monkeypatch):
    view = Augmentation(jitters=(("brightness", 0.8),), mirror=True, padding="reflect")
    monkeypatch.setattr("deeppatch.adapt.roid.draw", lambda generator, **kinds: view)
    roid = adapter("roid", model, RoidSettings(lr=0.01))
    network, parameters = with_batch_statistics(model)
    chosen, gradients = plain_roid(network, parameters, batches[0], view)
    assert 0 < len(chosen) < 9
    expected = [
        0.99 * moved + 0.01 * start
        for moved, start in zip(first_adam_step(parameters, gradients, 0.01), parameters, strict=True)
    ]
    answers = roid.predict(batches[0])
    assert_close(roid.parameters, expected)
    logits = adapter("bn-1", model).predict(batches[0])
    torch.testing.assert_close(answers, correct_prior(logits))
    torch.testing.assert_close(roid.mean, 0.9 * torch.full((4,), 0.25) + 0.1 * logits.softmax(1).mean(0))
    assert roid.passes.train == 9 + len(chosen)


def test_a_uniform_prior_changes_no_answer_and_another_one_favours_the_frequent_class():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.5, 2.0, -1.0], [-1.0, 0.5, 2.0]])
    torch.testing.assert_close(correct_prior(logits).softmax(1), logits.softmax(1))
    skewed = torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [-0.01, 0.0]])
    shares = skewed.softmax(1)
    prior = shares.mean(0)
    smoothing = 0.5 / prior.max()
    prior = (prior + smoothing) / (1 + 2 * smoothing)
    expected = shares * prior / (shares * prior).sum(1, keepdim=True)
    torch.testing.assert_close(correct_prior(skewed).softmax(1), expected)
    assert correct_prior(skewed).argmax(1).tolist() == [0, 0, 0, 0], "the doubtful one follows the others"
    negative = skewed - 10
    assert correct_prior(negative).argmax(1).tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(correct_prior(negative, on_logits=True), negative * prior)
    assert correct_prior(negative, on_logits=True).argmax(1).tolist() == [1, 1, 1, 1], "turned round, as published"


def test_a_batch_of_one_is_not_defined_for_roid_and_said(model, batches):
    roid = adapter("roid", model)
    for ask in (roid.predict, roid.answer):
        with pytest.raises(UserError, match="Roid is not defined for a batch of 1 image"):
            ask(batches[0][:1])
    with pytest.raises(UserError, match="predictions are all alike"):
        roid.predict(batches[0][:1].expand(4, -1, -1, -1))
