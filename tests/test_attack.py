"""Attacks on networks whose worst case in the ball is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deeppatch.attack import SCHEDULES, Robustness, Schedule, _held, attack, attack_success, pgd
from deeppatch.errors import UserError

SHAPE = (3, 3, 4)
SIZE = math.prod(SHAPE)


class Linear(nn.Module):
    """Logits (N, C) that are linear in the pixels."""

    def __init__(self, seed: int, classes: int = 2, bias: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, SIZE, generator=generator))
        self.bias = nn.Parameter(torch.tensor([bias] + [0.0] * (classes - 1)))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1) @ self.weight.T + self.bias


def images(count: int = 64, seed: int = 0) -> Tensor:
    """Pixels (N, 3, 3, 4), some at the borders of [0, 1]."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed)).mul(0.5).add(0.5).clamp(0, 1)


def lowest_margin(model: Linear, pixels: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """The smallest difference in the ball between the logit of the label and that of the other class."""
    difference = model.weight[labels] - model.weight[1 - labels]
    flat = pixels.flatten(1)
    worst = torch.where(difference > 0, (flat - epsilon).clamp(min=0), (flat + epsilon).clamp(max=1))
    return (difference * worst).sum(1) + model.bias[labels] - model.bias[1 - labels]


@pytest.mark.parametrize("epsilon", [0.02, 0.1])
@pytest.mark.parametrize("batch", [64, 23])
def test_the_worst_case_of_a_linear_model_is_found_exactly(epsilon, batch):
    model, pixels = Linear(1), images()
    with torch.no_grad():
        model.bias[0] -= (model(pixels)[:, 0] - model(pixels)[:, 1]).median()
    labels = model(pixels).argmax(1)
    labels[:6] = 1 - labels[:6]
    found = attack(model, list(zip(pixels.split(batch), labels.split(batch), strict=True)), epsilon=epsilon)
    margin = lowest_margin(model, pixels, labels, epsilon)
    assert margin.abs().min() > 1e-4, "none is decided by rounding"
    assert found.correct.tolist() == [False] * 6 + [True] * 58
    assert found.robust.tolist() == (margin > 0).tolist()
    assert 0 < found.robust_accuracy < 100 * 58 / 64
    assert found.robust_accuracy == pytest.approx(100 * (margin > 0).double().mean().item())
    assert found.epsilon == epsilon


def test_parameters_get_no_gradients_and_the_mode_is_restored():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), nn.Linear(8, 2))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(images(8), torch.zeros(8, dtype=torch.long))]
    one, two = (attack(model, batches, schedules=[Schedule(3, 0.5)]) for _ in range(2))
    assert torch.equal(one.robust, two.robust), "no dropout"
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_pgd_stays_in_the_ball_and_returns_the_worst_that_it_saw(schedule):
    model, pixels = Linear(2, classes=4), images(20)
    labels = model(pixels).argmax(1)
    start = 0.05 * (2 * torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)) - 1)
    seen: list[Tensor] = []

    def watched(at: Tensor) -> Tensor:
        seen.append(at.detach().clone())
        return model(at)

    found = pgd(watched, pixels, labels, start, epsilon=0.05, schedule=schedule)
    assert len(seen) == schedule.steps + 1
    assert (found - pixels).abs().max() <= 0.05 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(seen[0], torch.clamp(pixels + start, (pixels - 0.05).clamp(min=0), (pixels + 0.05).clamp(max=1)))
    for image in range(20):
        path = torch.stack([each[image] for each in seen])
        logits = model(path)
        loss = nn.functional.cross_entropy(logits, labels[image].expand(len(path)), reduction="none")
        wrong = logits.argmax(1) != labels[image]
        ranks = [(bool(bad), value) for bad, value in zip(wrong, loss.tolist(), strict=True)]
        chosen = path[max(range(len(path)), key=lambda step: ranks[step])]
        own = model(torch.stack([found[image], chosen]))
        assert (own[0].argmax() != labels[image]) == wrong.any()
        assert nn.functional.cross_entropy(own, labels[image].expand(2), reduction="none").diff().abs() < 1e-4


class Switched(nn.Module):
    """Uses the second path where a hard decision says so."""

    def __init__(self, first: nn.Module, second: nn.Module, decide: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.decide = first, second, decide

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.where((self.decide(pixels) == 1)[:, None], self.second(pixels), self.first(pixels))


class Constant(nn.Module):
    """The same logits for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = nn.Parameter(torch.tensor(5.0))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.margin * torch.tensor([1.0, 0.0]).expand(len(pixels), 2)


def test_a_switch_that_hides_the_gradients_is_found_out():
    """All images take a path that never errs and has no gradient; some steps away the other path answers, wrongly."""
    fragile = Linear(3)
    slope = (fragile.weight[1] - fragile.weight[0]).detach()
    pixels, labels = 0.5 + 0.05 * (images(40) - 0.5), torch.zeros(40, dtype=torch.long)
    threshold = (pixels.flatten(1) @ slope.sign()).max() + 1
    model = Switched(Constant(), fragile, lambda at: (at.flatten(1) @ slope.sign() > threshold).long())
    with torch.no_grad():
        fragile.bias[0] = (pixels.flatten(1) @ slope).max() + 0.5
    batches, paths = [(pixels, labels)], {"robust": model.first, "fragile": model.second}
    assert (fragile(pixels).argmax(1) == 0).all(), "both paths are right on all images"
    whole = attack(model, batches, epsilon=0.1)
    assert (whole.correct & whole.robust).all(), "an attack on the whole has no gradient to follow"
    held = attack(model, batches, epsilon=0.1, paths={"robust": model.first}, decide=model.decide)
    assert held.robust.all(), "nor has the path that the images take"
    found = attack(model, batches, epsilon=0.1, paths=paths, decide=model.decide)
    assert found.correct.all()
    assert found.robust_accuracy == 0


def test_only_errors_of_the_model_itself_count():
    """A path that is never taken may be as fragile as it likes."""
    model = Switched(Constant(), Linear(3), lambda pixels: torch.zeros(len(pixels), dtype=torch.long))
    batches = [(images(10), torch.zeros(10, dtype=torch.long))]
    found = attack(model, batches, epsilon=0.5, paths={"a": model.first, "b": model.second}, decide=model.decide)
    assert found.robust_accuracy == 100


def test_the_decision_is_held_to_that_of_the_unattacked_image():
    """Every image is in reach of the path that it takes; two blind paths beside it have no gradient."""
    left, right = Linear(4), Linear(5)
    pixels = images(30)
    seen: list[int] = []

    def decide(at: Tensor) -> Tensor:
        seen.append(len(at))
        return (at.mean((1, 2, 3)) > 0.5).long()

    def blind(path: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda at: path(at.round())

    model = Switched(left, right, lambda at: (at.mean((1, 2, 3)) > 0.5).long())
    labels = model(pixels).argmax(1)
    decision = decide(pixels)
    assert 5 < decision.sum() < 25
    held = _held([left, right], decision)
    expected = torch.stack([(left, right)[way](pixels[[i]])[0] for i, way in enumerate(decision.tolist())])
    assert torch.allclose(held(pixels), expected, atol=1e-6)
    moved = 1 - pixels
    expected = torch.stack([(left, right)[way](moved[[i]])[0] for i, way in enumerate(decision.tolist())])
    assert torch.allclose(held(moved), expected, atol=1e-6), "the decision is not made again"
    seen.clear()
    found = attack(model, [(pixels, labels)], epsilon=0.05, paths={"a": left, "b": right}, decide=decide)
    alone = attack(model, [(pixels, labels)], epsilon=0.05, paths={"a": left, "b": right})
    hidden = attack(model, [(pixels, labels)], epsilon=0.05, paths={"a": blind(left), "b": blind(right)})
    assert (found.robust <= alone.robust).all(), "one more attack"
    assert found.robust_accuracy < hidden.robust_accuracy
    assert len(seen) == 6
    assert sorted(seen, reverse=True) == seen, "once for each run, on those that still stand"


def test_success_is_counted_on_images_that_are_right_before_and_after():
    flags = [[True, True, True, True, False], [True, False, True, False, False]]
    before = Robustness(0.1, *map(torch.tensor, flags))
    after = Robustness(
        0.1, torch.tensor([True, True, False, True, True]), torch.tensor([False, False, False, True, True])
    )
    found = attack_success(before, after)
    assert (found.images, found.before, found.after) == (3, 2, 2)
    assert found.percent == pytest.approx((200 / 3, 200 / 3))
    assert (before.robust_accuracy, after.robust_accuracy) == (40, 40)
    nobody = attack_success(before, Robustness(0.1, torch.zeros(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)))
    assert nobody.images == 0
    assert math.isnan(nobody.percent[0])
    with pytest.raises(UserError, match="same epsilon"):
        attack_success(before, Robustness(0.2, before.correct, before.robust))


@pytest.mark.parametrize(("options", "message"), [
    ({"epsilon": 0.0}, "epsilon=0.0"), ({"schedules": [Schedule(0, 0.1)]}, "steps=0"),
    ({"decide": lambda pixels: pixels}, "give paths too"),
])  # fmt: skip
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(UserError, match=message):
        attack(Linear(0), [(images(2), torch.zeros(2, dtype=torch.long))], **options)
    with pytest.raises(UserError, match="no images"):
        attack(Linear(0), [])
