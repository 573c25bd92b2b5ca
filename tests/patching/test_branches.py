"""Networks that cannot be cut at the first patched layer: the same answers, and what that costs is said."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from deeppatch.data.dataset import Data
from deeppatch.errors import UserError
from deeppatch.patching.branches import branches
from deeppatch.patching.calibration import fit_switch
from deeppatch.patching.export import export
from deeppatch.patching.training import train_patch
from deeppatch.zoo.classifier import Classifier

KEPT = "original and patched network are kept whole, and for every sample the layers before conv2 run twice"


class Base(nn.Module):
    """Two convolutions; the second one is patched."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)
        self.runs = 0

    def head(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv2(x))).mean((2, 3)))


class Branching(Base):
    """Reads the value of a pixel."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv1(x))
        return self.head(y * 2 if x.amax() > -100 else y)


class Sized(Base):
    """Needs after the second convolution what it read of the size of the images before it."""

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        return self.head(torch.relu(self.conv1(x))) * (height / 9)


class Drifting(Base):
    """Computes something else when it is traced: the graph keeps what a counter was."""

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.head(torch.relu(self.conv1(x)) * (1 + (self.runs > 0) * 0)) + isinstance(x, torch.fx.Proxy)


class Plain(Base):
    """Can be cut."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv1(x)))


REASONS = {
    Branching: "the network cannot be run as a graph: its forward pass depends on values (symbolically traced "
    f"variables cannot be used as inputs to control flow); {KEPT}",
    Sized: f"the network cannot be cut at conv2, because later layers read sizes or the like: {KEPT}",
    Drifting: f"the network cannot be run as a graph: it computes something else when it is run as a graph; {KEPT}",
    Plain: None,
}


def switched_model(network: nn.Module, kind: str = "replace"):
    torch.manual_seed(1)
    model = Classifier(network, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]).eval()
    pixels = torch.rand(30, 3, 9, 10)
    data = Data.of((pixels, torch.arange(30) % 3), (pixels, torch.arange(30) % 3))
    patch = train_patch(model, data, "gaussian-blur", {"conv2": [0, 3, 4]}, kind=kind, epochs=1, lr=0.5)
    return model, patch, fit_switch(model, patch, data, "gaussian-blur"), pixels


@pytest.mark.parametrize("kind", ["replace", "crtunit"])
@pytest.mark.parametrize("network", REASONS)
def test_each_sample_has_the_logits_of_the_network_that_it_is_routed_to(network, kind, caplog):
    with caplog.at_level(logging.INFO):
        model, patch, switched, pixels = switched_model(network(), kind)
    said = [message for message in caplog.messages if "layers before" in message]
    assert said == [reason for reason in [REASONS[network]] if reason]
    with torch.no_grad():
        scores = switched.route(pixels)[1]
        switched.router.threshold.copy_(scores.median())
        logits, _, moved = switched.route(pixels)
        assert 5 < int(moved.sum()) < 25
        answers = torch.stack([model(pixels), patch.apply(model)(pixels)])
    expected = answers[moved.long(), torch.arange(30)]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(answers[0], answers[1], atol=1e-3)


def test_what_comes_after_the_layer_does_not_run_to_decide():
    network = Branching().eval()
    found = branches(network, network, "conv2", torch.rand(2, 3, 9, 10))
    ran = []
    found.before.network.norm.register_forward_hook(lambda *_: ran.append("norm"))
    found.before.network.conv1.register_forward_hook(lambda *_: ran.append("conv1"))
    entering, images = found.before(pixels := torch.rand(4, 3, 9, 10))
    assert ran == ["conv1"]
    assert images is pixels
    assert torch.equal(entering, 2 * torch.relu(network.conv1(pixels)))


class Windows(Base):
    """Reads halves of images as samples of their own."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv1(x))
        return self.head(torch.cat(y.chunk(2, 3))).view(2, -1, 3).mean(0)


def test_a_layer_that_does_not_read_one_map_per_sample_is_refused():
    network = Windows().eval()
    with pytest.raises(UserError, match="cannot be switched at conv2: that layer does not read one map per sample"):
        branches(network, network, "conv2", torch.rand(2, 3, 9, 10))


def test_what_cannot_be_traced_cannot_be_exported():
    model, patch, switched, pixels = switched_model(Branching())
    with pytest.raises(UserError, match="this network cannot be exported: its forward pass depends on values"):
        next(export(model, patch, switched, pixels[:2]))
