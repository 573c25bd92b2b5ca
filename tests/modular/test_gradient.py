"""The gradient search: thresholds by hand, phases, the rule that chooses, and resumption."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from deeppatch.artifacts import Checkpoint
from deeppatch.data.images import Images
from deeppatch.data.views import Shuffled
from deeppatch.modular import gradient
from deeppatch.modular.gradient import BinaryStep, HeadEpoch, Splitter
from deeppatch.modular.layers import find_layers
from deeppatch.modular.masking import sliced_logits
from deeppatch.training import FreshMoments, History, adam, adam_with_initial_rate, fit


@pytest.fixture
def splitter(tiny):
    torch.manual_seed(2)
    example = torch.rand(2, 3, 12, 12)
    layers = find_layers(tiny.network, tiny.normalize(example))
    tiny.requires_grad_(False)
    first = [torch.full((5, layer.kernels), 0.05) for layer in layers]
    return Splitter((tiny.normalize, tiny.network), layers, first, head=True)


def test_thresholds_begin_in_the_order_of_importance():
    importance = [torch.tensor([[0.3, 0.1, 0.2, 0.9], [0.0, 0.0, 5.0, 1.0]])]
    (found,) = gradient.first_thresholds(importance, 0.2)
    assert found.tolist() == [pytest.approx([0.3, 0.1, 0.2, 0.4]), pytest.approx([0.1, 0.2, 0.4, 0.3])]


def test_selective_thresholds_keep_the_half_of_all_kernels_that_answers_mostly_to_a_class():
    importance = [torch.tensor([[9.0, 1.0], [0.9, 1.0]]), torch.tensor([[0.2, 0.0], [0.1, 0.0]])]
    found = gradient.initial_thresholds("selective", importance, 0.5, 1)
    assert [each.shape for each in found] == [(2, 2), (2, 2)]
    # shares of the class to which each answers most: 1, 1, 1, 0 and 0.1, 1, 0.5, 0; ties by the order of layers
    assert torch.cat(found, 1).tolist() == [pytest.approx([0, 0.5, 1, -0.5]), pytest.approx([0, 1, 0.5, -0.5])]


def test_the_other_starts_are_ones_zeros_and_numbers_by_seed():
    importance = [torch.rand(2, 4), torch.rand(2, 3)]
    assert torch.equal(
        gradient.initial_thresholds("importance", importance, 0.2, 1)[0], gradient.first_thresholds(importance, 0.2)[0]
    )
    for start, value in (("ones", 1.0), ("zeros", 0.0)):
        found = gradient.initial_thresholds(start, importance, 0.2, 1)
        assert [each.unique().tolist() for each in found] == [[value]] * 2
    one, same, other = (
        torch.cat(gradient.initial_thresholds("random", importance, 0.2, seed), 1) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0 < (one > 0).sum() < one.numel()


@pytest.fixture
def some():
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (30, 3, 12, 12), generator=draw, dtype=torch.uint8)
    return Images(pixels, torch.arange(30) % 5)


def test_a_step_passes_the_gradient_within_one():
    values = torch.tensor([0.3, -0.2, 0.0, 1e-6], requires_grad=True)
    mask = BinaryStep.apply(values)
    assert mask.tolist() == [1, 0, 0, 1]
    (mask * torch.tensor([0.4, -3.0, 7.0, -0.2])).sum().backward()
    assert values.grad.tolist() == pytest.approx([0.4, -1, 1, -0.2])


def test_the_gradient_of_one_kernel_is_that_of_its_map_clamped(splitter, some):
    """By hand: the derivative of the loss by a mask is the sum over images and pixels of gradient times map."""
    pixels = some.pixels.float() / 255
    _normalize, network = splitter.frozen
    reader = splitter.layers[-1].readers
    (name,) = reader
    reads = {}
    handle = network.get_submodule(name).register_forward_hook(lambda _m, i, o: reads.update(x=i[0], y=o))
    loss = gradient.splitting_loss(0.0)(splitter, (pixels, some.labels))
    by_output = torch.autograd.grad(loss, reads["y"], retain_graph=True)[0]
    handle.remove()
    loss.backward()
    kernel, module = 3, 2
    weight = network.get_submodule(name).weight
    block = slice(module * 30, (module + 1) * 30)
    by_hand = (by_output[block] @ weight[:, kernel] * reads["x"][block, kernel]).sum()
    assert splitter.thresholds[-1].grad[module, kernel].item() == pytest.approx(by_hand.clamp(-1, 1).item(), rel=1e-4)


def test_every_module_begins_as_the_whole_network(splitter, some):
    normalize, network = splitter.frozen
    pixels = some.pixels.float() / 255
    with torch.no_grad():
        logits = splitter.logits(pixels)
        assert torch.allclose(logits, network(normalize(pixels)).unsqueeze(1).expand_as(logits), atol=1e-5)
        assert torch.allclose(gradient.module_logits(splitter, some), logits, atol=1e-5)
        assert splitter.kept_share() == 1


def test_the_smaller_networks_logits_are_those_of_masks_whatever_the_batch(splitter, some):
    for values in splitter.thresholds:
        values.data.uniform_(-0.5, 1)
    expected = gradient.module_logits(splitter.eval(), some)
    for batch_size in (7, 1024):
        found = gradient.logits_of_smaller(splitter, some, batch_size)
        assert found.shape == (30, 5, 5)
        assert torch.allclose(found, expected, atol=1e-5)


def test_modules_answer_as_their_smaller_networks_do(splitter, some):
    normalize, network = splitter.frozen
    for values in splitter.thresholds:
        values.data.uniform_(-0.5, 1)
    x = normalize(some.pixels.float() / 255)
    kept = [mask.bool() for mask in splitter.masks()]
    with torch.no_grad():
        assert torch.allclose(splitter.logits(some.pixels.float() / 255).transpose(0, 1),
                              sliced_logits(network, splitter.layers, kept, x), atol=1e-5)  # fmt: skip


def test_a_layer_keeps_at_least_the_kernel_nearest_to_being_kept(splitter):
    splitter.thresholds[0].data.copy_(-torch.arange(1.0, 9).expand(5, -1))
    assert splitter.masks()[0].sum(1).tolist() == [1] * 5
    assert splitter.masks()[0][:, 0].tolist() == [1] * 5


def train(splitter, epochs, **options):
    optimizer, schedule = adam(splitter.parameters(), lr=0.02)
    return fit(splitter, epochs, lambda _model: 0.5, loss=gradient.splitting_loss(0.5), optimizer=optimizer,
               schedule=schedule,
               watch=lambda model: model.kept_share().item(), **options)  # fmt: skip


def last(history):
    return len(history.loss) - 1


def test_epochs_of_heads_leave_masks_untouched_and_the_network_too(splitter, some):
    before = [values.clone() for values in splitter.thresholds]
    weights = {name: value.clone() for name, value in splitter.frozen[1].state_dict().items()}
    heads = splitter.heads.bias2.clone()
    train(splitter, [HeadEpoch(splitter, some, 8, 1, epoch, {}) for epoch in range(2)], choose=last)
    assert all(torch.equal(a, b) for a, b in zip(before, splitter.thresholds, strict=True))
    assert not torch.equal(heads, splitter.heads.bias2)
    train(splitter, [Shuffled(some, 8, 1, 0)], choose=last)
    assert not all(torch.equal(a, b) for a, b in zip(before, splitter.thresholds, strict=True))
    assert all(torch.equal(value, weights[name]) for name, value in splitter.frozen[1].state_dict().items())


def test_an_epoch_of_heads_reads_the_logits_of_the_masks_as_they_are(splitter, some):
    known = {}
    first = [batch for batch in HeadEpoch(splitter, some, 8, 1, 0, known)]
    assert sum(len(labels) for _, labels in first) == 30
    splitter.thresholds[0].data[1] = -1
    (logits, labels), *_ = HeadEpoch(splitter, some, 30, 1, 0, known)
    order = [int((some.labels == label).nonzero()[0]) for label in labels[:1]]
    assert len(known) == 1
    with torch.no_grad():
        expected = splitter.logits(some.pixels.float() / 255)
    assert any(torch.allclose(logits[0], row, atol=1e-5) for row in expected)
    assert order


def test_phases_are_the_published_ones(splitter, some):
    kinds = ["heads" if isinstance(each, HeadEpoch) else "masks" for each in gradient.epochs(splitter, some, 8, 1, 145)]
    assert kinds[:14] == ["heads"] * 5 + ["masks"] * 5 + ["heads"] * 2 + ["masks"] * 2
    assert kinds.count("masks") == 100
    splitter.heads = None
    assert not any(isinstance(each, HeadEpoch) for each in gradient.epochs(splitter, some, 8, 1, 9))


def test_a_new_phase_begins_with_these_epochs(splitter, some):
    kinds = [isinstance(each, HeadEpoch) for each in gradient.epochs(splitter, some, 8, 1, 30)]
    changes = [epoch for epoch in range(1, 30) if kinds[epoch] != kinds[epoch - 1]]
    assert gradient.switches(30) == changes == [5, 10, 12, 17, 19, 24, 26]


def test_fresh_moments_are_those_of_a_new_optimizer_at_each_switch():
    start = torch.randn(4, generator=torch.Generator().manual_seed(3))
    ours = torch.nn.Parameter(start.clone())
    optimizer, schedule = adam_with_initial_rate([torch.nn.Parameter(start)], [ours], lr=0.01, initial_lr=0.1, steps=3)
    schedule = FreshMoments(schedule, [3, 5])
    plain = torch.nn.Parameter(start.clone())
    for step in range(8):
        if step in (0, 3, 5):  # by definition: a new Adam wherever a phase begins
            by_hand = torch.optim.Adam([plain], lr=0.1 if step < 3 else 0.01)
        for parameter, stepped in ((ours, optimizer), (plain, by_hand)):
            parameter.grad = (parameter.detach() - step) ** 3
            stepped.step()
        schedule.step()
        torch.testing.assert_close(ours, plain)


def test_the_loss_is_cross_entropy_and_the_mean_mask(splitter, some):
    pixels = some.pixels.float() / 255
    splitter.thresholds[1].data[:, :4] = -1
    scores = splitter(pixels)
    assert ((scores > 0) & (scores < 1)).all()
    expected = F.cross_entropy(scores, some.labels) + 0.5 * splitter.kept_share()
    assert gradient.splitting_loss(0.5)(splitter, (pixels, some.labels)).item() == pytest.approx(expected.item())
    flat = torch.cat(
        [mask for layer, mask in zip(splitter.layers, splitter.masks(), strict=True) for _ in layer.convs], 1
    )
    pairs = [(one, two) for one in range(len(flat)) for two in range(len(flat)) if one != two]
    both = torch.stack([(flat[one] * flat[two]).mean() for one, two in pairs]).mean()
    assert splitter.shared_share().item() == pytest.approx(both.item())
    found = torch.autograd.grad(splitter.shared_share(), list(splitter.thresholds))
    plain = torch.autograd.grad(both, list(splitter.thresholds))
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other)
    more = gradient.splitting_loss(0.5, 2.0)(splitter, (pixels, some.labels)).item()
    assert more == pytest.approx(expected.item() + 2 * both.item())
    kept = sum(mask.sum() * len(layer.convs) for mask, layer in zip(splitter.masks(), splitter.layers, strict=True))
    assert splitter.kept_share().item() == pytest.approx(kept.item() / (5 * 28))


def test_the_chosen_epoch_loses_less_than_a_point_and_keeps_fewest():
    choose = gradient.choose_smallest(0.95, 0.01)
    assert choose(History([1] * 4, [0.93, 0.945, 0.95, 0.941], [1.0, 0.6, 0.7, 0.5])) == 3
    assert choose(History([1] * 3, [0.93, 0.945, 0.92], [1.0, 0.6, 0.1])) == 1
    assert choose(History([1] * 3, [0.91, 0.93, 0.92], [1.0, 0.9, 0.1])) == 1


class Killed(Exception):
    pass


def test_a_killed_search_ends_with_the_same_bytes(splitter, some, tmp_path):
    other = copy.deepcopy(splitter)
    plan = lambda model: gradient.epochs(model, some, 8, 1, 8)  # noqa: E731
    train(splitter, plan(splitter))
    checkpoint = Checkpoint(tmp_path / "c.pt", {}, resume=False)
    save, saves = checkpoint.save, []

    def killing(state):
        save(state)
        saves.append(1)
        if len(saves) == 6:
            raise Killed

    checkpoint.save = killing
    fresh = copy.deepcopy(other)
    with pytest.raises(Killed):
        train(fresh, plan(fresh), checkpoint=checkpoint)
    train(other, plan(other), checkpoint=Checkpoint(tmp_path / "c.pt", {}, resume=True))
    assert all(
        torch.equal(a, b) for a, b in zip(splitter.state_dict().values(), other.state_dict().values(), strict=True)
    )
