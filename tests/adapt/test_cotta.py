"""CoTTA against a plain definition, and the views that its teacher averages over."""

from __future__ import annotations

import copy

import pytest
import torch

from deeppatch import runtime
from deeppatch.adapt.augmentation import RANGES, Augmentation, draw
from deeppatch.adapt.cotta import CottaSettings
from deeppatch.adapt.methods import adapter
from deeppatch.data.images import Images, to_float
from deeppatch.data.sources import load


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def test_at_rate_zero_answers_are_those_of_bn_1_where_no_view_is_taken(model, batches):
    cotta, still = adapter("cotta", model, CottaSettings(lr=0.0, confidence=0.0)), adapter("bn-1", model)
    for batch in batches:
        torch.testing.assert_close(cotta.predict(batch), still.predict(batch))
    assert (cotta.passes.train, cotta.passes.forward) == (27, 2 * 27)


def test_a_step_is_that_of_the_definition(model, batches):
    settings = CottaSettings(lr=0.01, memory=0.9, restored=0.25, confidence=0.0)
    model.double()  # because Adam steps as far where a gradient is but a rounding error, such as that of a bias
    cotta = adapter("cotta", model, settings, seed=5)
    student = copy.deepcopy(model).train()
    teacher = copy.deepcopy(model).train()
    start = [each.detach().clone() for each in student.parameters()]
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    random = runtime.generator(5, "cotta")
    for batch in (each.double() for each in batches):
        with torch.no_grad():
            answers = teacher(batch)
        found = cotta.predict(batch)
        torch.testing.assert_close(found, answers)
        loss = 0
        for logits, shares in zip(student(batch), answers.softmax(1), strict=True):
            loss = loss - (shares * logits.log_softmax(0)).sum() / len(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, parameter, source in zip(teacher.parameters(), student.parameters(), start, strict=True):
                slow.copy_(0.9 * slow + 0.1 * parameter)
                back = torch.rand(parameter.shape, generator=random) < 0.25
                parameter[back] = source[back]
    restored = total = 0
    for name, own in cotta.model.named_parameters():
        source = dict(model.named_parameters())[name]
        restored, total = restored + int((own == source).sum()), total + own.numel()
    assert 0.15 * total < restored < 0.4 * total
    for one, other in zip(cotta.teacher.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_an_unsure_source_network_makes_the_teacher_average_over_views(model, batches):
    cotta = adapter("cotta", model, CottaSettings(confidence=1.1, views=3), seed=9)
    random = runtime.generator(9, "cotta")
    still = adapter("bn-1", model)
    expected = torch.stack([still.predict(draw(random)(batches[0], random)) for _ in range(3)]).mean(0)
    torch.testing.assert_close(cotta.predict(batches[0]), expected)
    assert (cotta.passes.train, cotta.passes.forward) == (9, 4 * 9)


@pytest.fixture
def digits() -> torch.Tensor:
    """Return six real images, 32x32."""
    found: Images = load("digits", None, 1).test
    return to_float(found.pixels[:6])


def test_a_view_without_changes_is_the_image(digits):
    for padding in ("replicate", "reflect"):
        torch.testing.assert_close(Augmentation(padding=padding)(digits, generator()), digits, rtol=0, atol=1e-5)
    turned = Augmentation(mirror=True)(digits, generator())
    torch.testing.assert_close(turned, digits.flip(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", ["replicate", "reflect"])
def test_a_shift_is_a_share_of_the_padded_image_and_continues_the_border(padding):
    picture = torch.rand(1, 3, 8, 8, generator=generator())
    moved = Augmentation(shift=(1 / 8, -1 / 16), padding=padding)(picture, generator())  # 2 to the right and 1 up
    expected = torch.nn.functional.pad(picture, (2, 0, 0, 1), mode=padding)[..., 1:, :8]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def test_all_images_of_a_batch_share_a_draw_and_noise_is_their_own(digits):
    same = digits[:1].expand(2, -1, -1, -1)
    one, two = draw(generator(3), blur_and_noise=False)(same, generator())
    assert torch.equal(one, two)
    one, two = draw(generator(3))(same, generator())
    assert 0 < (one - two).abs().mean() < 0.02
    assert 0 <= min(one.min(), two.min()) <= max(one.max(), two.max()) <= 1


def test_draws_lie_in_the_published_ranges_and_differ():
    random = generator()
    found = [draw(random) for _ in range(200)]
    for view in found:
        for name, amount in view.jitters:
            low, high = RANGES[name]
            assert low <= amount <= high
        assert set(dict(view.jitters)) == set(RANGES)
        assert abs(view.angle) <= 15
        assert max(map(abs, view.shift)) <= 1 / 16
        assert 0.9 <= view.zoom <= 1.1
        assert 0.001 <= view.sigma <= 0.5
    assert len({tuple(dict(view.jitters)) for view in found}) > 50, "orders"
    assert 70 < sum(view.mirror for view in found) < 130
    assert max(abs(view.angle) for view in found) > 14
    plain = draw(random, padding="reflect", blur_and_noise=False)
    assert (plain.sigma, plain.noise, plain.padding) == (None, 0.0, "reflect")
