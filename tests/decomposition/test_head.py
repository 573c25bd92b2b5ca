"""The decomposed head against a dense layer whose other weights are zero, and the layer that it replaces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.data.dataset import Data
from deeppatch.decomposition.head import DecomposedHead, decompose, microseconds
from deeppatch.decomposition.index_sets import membership
from deeppatch.errors import UserError

SHAPES = [(5, 12, 3), (10, 64, 5), (10, 64, 64), (100, 64, 1), (7, 2048, 40)]


def parts(classes: int, width: int, k: int) -> tuple[nn.Linear, torch.Tensor]:
    """A whole layer and a random set of features for each class."""
    torch.manual_seed(classes + k)
    return nn.Linear(width, classes), torch.stack([torch.randperm(width)[:k] for _ in range(classes)])


def masked(whole: nn.Linear, indices: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The oracle: a dense layer, its other weights times zero."""
    return F.linear(features, whole.weight * membership(indices, whole.in_features), whole.bias)


@pytest.mark.parametrize(("classes", "width", "k"), SHAPES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_logits_and_gradients_are_those_of_a_masked_dense_layer(classes, width, k, kind):
    whole, indices = parts(classes, width, k)
    whole.to(kind)
    head = DecomposedHead.from_linear(whole, indices)
    ours = torch.randn(33, width, dtype=kind, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_(True)
    found, want = head(ours), masked(whole, indices, theirs)
    close = {"rtol": 1e-4, "atol": 1e-5} if kind is torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(found, want, **close)
    labels = torch.arange(33) % classes
    for logits in (found, want):
        F.cross_entropy(logits, labels, reduction="sum").backward()
    torch.testing.assert_close(head.weight.grad, whole.weight.grad.gather(1, indices), **close)
    torch.testing.assert_close(head.bias.grad, whole.bias.grad, **close)
    torch.testing.assert_close(ours.grad, theirs.grad, **close)
    assert ours.grad.abs().max() > 1e-3


@pytest.mark.parametrize(("classes", "width", "k"), SHAPES)
def test_an_image_s_logits_do_not_depend_on_the_batch_that_it_is_in(classes, width, k):
    whole, indices = parts(classes, width, k)
    head = DecomposedHead.from_linear(whole, indices)
    features = torch.rand(70, width)
    with torch.no_grad():
        for size in (1, 3, 16, 33):
            found = torch.cat([head(rows) for rows in features.split(size)])
            torch.testing.assert_close(found, head(features), rtol=0, atol=1e-6)  # the rounding is the processor's


def test_features_of_half_precision_are_summed_in_that_of_the_weights():
    whole, indices = parts(5, 12, 3)
    features = torch.randn(4, 12).bfloat16()
    head = DecomposedHead.from_linear(whole, indices)
    assert torch.equal(head(features), head(features.float()))


def test_a_layer_without_bias_gets_one_of_zeros():
    torch.manual_seed(0)
    whole, indices = nn.Linear(12, 5, bias=False), parts(5, 12, 3)[1]
    head = DecomposedHead.from_linear(whole, indices)
    assert head.bias.tolist() == [0] * 5
    features = torch.randn(4, 12)
    torch.testing.assert_close(head(features), masked(whole, indices, features))


def test_the_head_is_a_copy_and_trains_weights_and_biases():
    whole, indices = parts(5, 12, 3)
    before, given = state_digest(whole.state_dict()), indices.clone()
    head = DecomposedHead.from_linear(whole, indices)
    with torch.no_grad():
        for value in head.state_dict().values():
            value.add_(1)
    assert state_digest(whole.state_dict()) == before
    assert torch.equal(indices, given)
    assert {name for name, value in head.named_parameters() if value.requires_grad} == {"weight", "bias"}


def test_a_state_dict_survives_being_saved_and_loaded():
    whole, indices = parts(5, 12, 3)
    head, other = DecomposedHead.from_linear(whole, indices), DecomposedHead.from_linear(*parts(5, 12, 3))
    with torch.no_grad():
        other.indices.copy_(parts(5, 12, 4)[1][:, 1:])
        other.weight.zero_()
    features = torch.randn(8, 12)
    assert not torch.equal(other(features), head(features))
    other.load_state_dict(tensors_from_bytes(tensors_to_bytes(head.state_dict()), Path("x"))[0])
    assert torch.equal(other(features), head(features))
    assert head.state_dict().keys() == {"indices", "weight", "bias"}


@pytest.mark.parametrize(("classes", "width", "k"), SHAPES)
def test_multiply_adds_are_classes_times_features(classes, width, k):
    assert DecomposedHead.from_linear(*parts(classes, width, k)).multiply_adds == classes * k


def test_a_pass_takes_some_time():
    head, batch = DecomposedHead.from_linear(*parts(5, 12, 3)), torch.rand(8, 12)
    assert 0 < microseconds(head, batch) < 1e6
    assert microseconds(nn.Linear(12, 5), batch) > 0
    assert head.weight.grad is None


# --- the layer that is replaced


@pytest.mark.parametrize("k", [3, 12])
def test_decomposing_makes_a_copy_that_differs_in_its_head_only(tiny, images, k):
    before, pixels = state_digest(tiny.state_dict()), images.pixels.float() / 255
    indices = parts(5, 12, k)[1]
    other = decompose(tiny, Data(images, images, images, tuple("abcde")), indices)
    assert isinstance(other.network.fc, DecomposedHead)
    with torch.no_grad():
        found, whole = other(pixels), tiny(pixels)
        for value in other.state_dict().values():
            value.add_(1)
    assert state_digest(tiny.state_dict()) == before
    assert isinstance(tiny.network.fc, nn.Linear)
    assert torch.allclose(found, whole, atol=1e-5) == (k == 12), "all features give the whole layer's logits"
    with torch.no_grad():
        tiny.network.fc.weight.mul_(membership(indices, 12))
        torch.testing.assert_close(found, tiny(pixels))


def test_the_layer_is_the_one_that_computes_the_logits_whatever_else_fits():
    """The first layer has as many outputs, and the last one is registered before it."""

    class Twisted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(3, 3), nn.Linear(12, 3)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(pixels.flatten(1)))

    pixels = torch.rand(9, 3, 2, 2)
    data = Data.of((pixels, torch.arange(9) % 3), (pixels, torch.arange(9) % 3), (pixels, torch.arange(9) % 3))
    other = decompose(Twisted(), data, torch.tensor([[0, 1], [1, 2], [2, 0]]))
    assert isinstance(other.last, DecomposedHead)
    assert isinstance(other.first, nn.Linear)
    for wrong in ([[0], [1]], [[0], [1], [3]], [[0], [-1], [2]], [0, 1, 2]):
        with pytest.raises(UserError, match=r"layer, last, has 3 outputs and 3 inputs; indices must be \(3, k\)"):
            decompose(Twisted(), data, torch.tensor(wrong))
    with pytest.raises(UserError, match="does not end in a linear layer"):
        decompose(nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU()), data, torch.tensor([[0], [1], [2]]))
