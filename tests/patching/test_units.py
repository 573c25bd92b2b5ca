"""The two units against plain versions of what the paper describes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.artifacts import state_digest
from deeppatch.patching import names
from deeppatch.patching.training import fit_patch
from deeppatch.patching.units import UNITS, CorrectedConv2d, ReplacedConv2d
from deeppatch.training import accuracy_on, degraded_epochs

CHANNELS = [1, 4, 5]
VARIANTS = [
    {"kernel_size": 3, "padding": 1, "bias": False},
    {"kernel_size": 3, "padding": 1, "bias": True},
    {"kernel_size": 3, "stride": 2, "padding": 0, "bias": True},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": True},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2), "dilation": (2, 1), "bias": True},
    {"kernel_size": 1, "stride": 2, "bias": False},
    {"kernel_size": 1, "bias": True},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "bias": True},
    {"kernel_size": 3, "padding": "same", "bias": True},
]


@pytest.fixture(params=VARIANTS, ids=lambda variant: "-".join(f"{k}{v}" for k, v in variant.items()))
def conv(request) -> nn.Conv2d:
    torch.manual_seed(2)
    return nn.Conv2d(4, 7, **request.param).double()


class TwoConvolutions(nn.Module):
    """ReplaceCorrect as described: the original convolution for the others, a new one without bias for `channels`."""

    def __init__(self, original: nn.Conv2d, channels: list[int], rows: Tensor) -> None:
        super().__init__()
        self.original, self.channels = original, channels
        self.new = nn.Conv2d(
            original.in_channels, len(channels), original.kernel_size, original.stride, original.padding,
            original.dilation, bias=False, padding_mode=original.padding_mode,
        ).double()  # fmt: skip
        self.new.weight.data.copy_(rows)

    def forward(self, x: Tensor) -> Tensor:
        kept, new = self.original(x), iter(self.new(x).unbind(1))
        return torch.stack([next(new) if c in self.channels else kept[:, c] for c in range(kept.shape[1])], 1)


def drawn(conv: nn.Conv2d) -> tuple[ReplacedConv2d, TwoConvolutions, Tensor]:
    """Both forms with the same new rows, and an input."""
    unit = ReplacedConv2d(conv, torch.tensor(CHANNELS))
    nn.init.normal_(unit.rows)
    return unit, TwoConvolutions(conv, CHANNELS, unit.rows.detach()), torch.randn(3, 4, 9, 11, dtype=torch.float64)


def test_one_convolution_equals_two_forward_and_backward(conv):
    unit, two, x = drawn(conv)
    x_one, x_two = x.clone().requires_grad_(), x.clone().requires_grad_()
    y_one, y_two = unit(x_one), two(x_two)
    torch.testing.assert_close(y_one, y_two, rtol=0, atol=1e-6)
    assert not torch.allclose(y_two, conv(x)), "the case says nothing"

    upstream = torch.randn_like(y_two)
    y_one.backward(upstream)
    y_two.backward(upstream)
    torch.testing.assert_close(unit.rows.grad, two.new.weight.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x_one.grad, x_two.grad, rtol=1e-6, atol=1e-6)
    assert unit.rows.grad.abs().sum() > 1


def test_base_parameters_of_a_replaced_convolution_get_no_gradient(conv):
    unit = ReplacedConv2d(conv, torch.tensor(CHANNELS))
    assert conv.weight.requires_grad, "even where the base is not frozen"
    unit(torch.randn(2, 4, 9, 11, dtype=torch.float64)).sum().backward()
    assert conv.weight.grad is None
    assert conv.bias is None or conv.bias.grad is None
    assert unit.rows.grad is not None


def test_plain_convolution_for_inference_equals_the_training_form(conv):
    unit, two, x = drawn(conv)
    before = state_digest(conv.state_dict())
    plain = unit.for_inference()
    assert type(plain) is nn.Conv2d
    assert (plain.bias is None) == (conv.bias is None)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), unit(x), rtol=0, atol=1e-6)
        torch.testing.assert_close(plain(x), two(x), rtol=0, atol=1e-6)
        plain.weight.zero_()
    assert state_digest(conv.state_dict()) == before, "the original shares memory with the merged one"


def test_rows_start_from_the_original_filters_without_their_bias(conv):
    unit = ReplacedConv2d(conv, torch.tensor(CHANNELS))
    torch.testing.assert_close(unit.rows.detach(), conv.weight.detach()[CHANNELS], rtol=0, atol=0)
    assert unit.rows.data_ptr() != conv.weight.data_ptr()
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    with torch.no_grad():
        expected = conv(x)
        if conv.bias is not None:
            expected[:, CHANNELS] -= conv.bias[CHANNELS].view(-1, 1, 1)
        torch.testing.assert_close(unit(x), expected, rtol=0, atol=1e-6)
    assert dict(unit.new_parameters().items()).keys() == {"rows"}
    assert unit.new_parameters()["rows"] is unit.rows


def by_hand(unit: CorrectedConv2d, x: Tensor, train: bool) -> Tensor:
    """x + g(x) at the chosen channels, from the tensors alone; the other channels where they were."""
    state = {key: value.clone() for key, value in unit.unit.state_dict().items()}
    y = F.conv2d(x, unit.original.weight, unit.original.bias, unit.original.stride, unit.original.padding)
    z = picked = torch.stack([y[:, c] for c in CHANNELS], 1)
    for conv, norm, padding in (("0", "1", 0), ("3", "4", 1), ("6", "7", 1)):
        z = F.conv2d(z, state[f"{conv}.weight"], padding=padding)
        z = F.batch_norm(
            z, state[f"{norm}.running_mean"], state[f"{norm}.running_var"], state[f"{norm}.weight"],
            state[f"{norm}.bias"], training=train,
        )  # fmt: skip
        z = F.relu(z)
    corrected = picked + F.conv2d(z, state["9.weight"])
    return torch.stack(
        [corrected[:, CHANNELS.index(c)] if c in CHANNELS else y[:, c] for c in range(y.shape[1])], dim=1
    )


@pytest.fixture
def corrected() -> CorrectedConv2d:
    """A unit behind a convolution with stride and bias, with weights and statistics that are not the initial ones."""
    torch.manual_seed(4)
    unit = CorrectedConv2d(nn.Conv2d(4, 7, 3, stride=2, padding=1), torch.tensor(CHANNELS))
    nn.init.normal_(unit.unit[-1].weight)
    for module in unit.unit:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return unit


@pytest.mark.parametrize("train", [False, True])
def test_corrected_channels_keep_their_places(corrected, train):
    corrected.train(train)
    x = torch.randn(5, 4, 10, 10)
    expected = by_hand(corrected, x, train)
    with torch.no_grad():
        y, before = corrected(x), corrected.original(x)
    torch.testing.assert_close(y, expected.detach(), rtol=1e-5, atol=1e-6)
    others = [c for c in range(7) if c not in CHANNELS]
    assert torch.equal(y[:, others], before[:, others]), "the other channels are the original's, bit for bit"
    assert all((y[:, c] - before[:, c]).abs().max() > 0.01 for c in CHANNELS)
    torch.testing.assert_close(corrected.correct(before)[:, 1], y[:, CHANNELS[1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_correction_starts_from_the_original_network(bias):
    torch.manual_seed(6)
    conv = nn.Conv2d(4, 7, 3, padding=1, bias=bias)
    unit = CorrectedConv2d(conv, torch.tensor(CHANNELS))
    x = torch.randn(3, 4, 8, 8)
    for train in (True, False):
        assert torch.equal(unit.train(train)(x), conv(x))


def test_correction_has_the_published_architecture(corrected):
    width = len(CHANNELS)
    kinds = [type(module) for module in corrected.unit]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3 + [nn.Conv2d]
    convs = [module for module in corrected.unit if isinstance(module, nn.Conv2d)]
    assert [conv.kernel_size for conv in convs] == [(1, 1), (3, 3), (3, 3), (1, 1)]
    assert [conv.padding for conv in convs] == [(0, 0), (1, 1), (1, 1), (0, 0)]
    assert all(conv.in_channels == conv.out_channels == width and conv.groups == 1 for conv in convs)
    assert all(conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.bias is None for conv in convs)
    norms = [module for module in corrected.unit if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.num_features == width and norm.affine for norm in norms)
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"unit.{conv}.weight" for conv in (0, 3, 6, 9)}
    expected |= {f"unit.{norm}.{key}" for norm in (1, 4, 7) for key in statistics}
    assert corrected.new_parameters().keys() == expected


def test_first_step_moves_the_correction_and_the_second_all_of_it(corrected):
    """The zero at the end must not keep the rest from ever training."""
    unit = CorrectedConv2d(corrected.original, torch.tensor(CHANNELS))
    for parameter in unit.original.parameters():
        parameter.requires_grad_(False)
    trained = dict(unit.unit.named_parameters())
    before = {name: value.detach().clone() for name, value in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    x = torch.randn(6, 4, 10, 10)
    for _ in range(2):
        optimizer.zero_grad()
        unit(x).square().mean().backward()
        optimizer.step()
    assert [name for name, value in trained.items() if torch.equal(value, before[name])] == []
    assert all(parameter.grad is None for parameter in unit.original.parameters())


def test_corrected_unit_stays_itself_for_inference(corrected):
    assert corrected.for_inference() is corrected


@pytest.mark.parametrize("kind", UNITS)
def test_unit_leaves_the_original_convolution_alone(kind):
    torch.manual_seed(1)
    conv = nn.Conv2d(4, 7, 3, padding=1)
    before = copy.deepcopy(conv.state_dict())
    unit = UNITS[kind](conv, torch.tensor(CHANNELS))
    assert unit.kind == kind
    assert unit.original is conv
    with torch.no_grad():
        for parameter in unit.new_parameters().values():
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in conv.state_dict().items())
    assert not any("channels" in key for key in unit.state_dict()), "places are kept by the patch file"


def test_names_are_those_of_the_registry():
    assert tuple(UNITS) == names.UNITS
    assert all(UNITS[kind].kind == kind for kind in names.UNITS)


def plain_form(unit: CorrectedConv2d, y: Tensor) -> Tensor:
    """Pick the channels, correct them, and put them back."""
    corrected = iter(unit.correct(y).unbind(1))
    return torch.stack([next(corrected) if c in unit.channels else y[:, c] for c in range(y.shape[1])], 1)


def test_training_has_the_gradients_of_the_plain_form(corrected):
    unit = copy.deepcopy(corrected).double().train()
    other, maps = copy.deepcopy(unit), torch.randn(4, 7, 6, 4, dtype=torch.float64)
    one, two = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    steer = torch.randn_like(maps)
    found, expected = unit.correct_all(one), plain_form(other, two)
    torch.testing.assert_close(found, expected)
    found.backward(steer)
    expected.backward(steer)
    torch.testing.assert_close(one.grad, two.grad)
    for name, parameter in other.unit.named_parameters():
        assert parameter.grad.abs().sum() > 0
        torch.testing.assert_close(unit.unit.get_parameter(name).grad, parameter.grad)


def test_an_epoch_leaves_the_weights_of_the_plain_form_and_the_same_bytes_again(tiny, images, blur, monkeypatch):
    def trained():
        torch.manual_seed(0)
        epochs = degraded_epochs(images, blur, epochs=1, batch_size=8, seed=1)
        channels = {"conv1": [0, 3], "conv2": [1, 2], "conv3": [4]}
        example = torch.rand(2, 3, *images.pixels.shape[-2:])
        return fit_patch(copy.deepcopy(tiny), channels, "crtunit", epochs, accuracy_on(images), example).tensors

    first, again = trained(), trained()
    with monkeypatch.context() as patch:
        taken = []
        patch.setattr(CorrectedConv2d, "correct_all", lambda unit, y: taken.append(1) or plain_form(unit, y))
        expected = trained()
    assert taken
    assert all(torch.equal(first[name], again[name]) for name in expected)
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-5)
