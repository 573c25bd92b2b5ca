"""An encoder of MoCo v3 from a file: its features are those of the layers that it was saved from."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.models.resnet import BasicBlock, ResNet

from deeppatch.errors import WrongWeights
from deeppatch.hybrid import given_encoder
from deeppatch.hybrid.given_encoder import load_encoder

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def perceptron(*sizes: int, last: bool) -> nn.Sequential:
    """Projector (with a last normalisation without parameters) or predictor of MoCo v3."""
    layers: list[nn.Module] = []
    for place, (width, out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers.append(nn.Linear(width, out, bias=False))
        if place < len(sizes) - 2:
            layers += [nn.BatchNorm1d(out), nn.ReLU()]
        elif last:
            layers.append(nn.BatchNorm1d(out, affine=False))
    return nn.Sequential(*layers)


class MoCo(nn.Module):
    """The modules of MoCo v3 by their published names, with a small head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.base_encoder = resnet50(weights=None)
        self.base_encoder.fc = perceptron(2048, 12, 7, last=True)
        self.predictor = perceptron(7, 12, 7, last=False)


@pytest.fixture(scope="module")
def moco() -> MoCo:
    return MoCo().eval()


@pytest.fixture(scope="module")
def state(moco) -> dict[str, torch.Tensor]:
    return {f"module.{key}": value for key, value in moco.state_dict().items()}


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory) -> Path:
    """A checkpoint as MoCo v3 leaves it: the averaged copy, the optimizer and settings lie beside the encoder."""
    path = tmp_path_factory.mktemp("moco") / "moco.pth.tar"
    copies = {key.replace("base_", "momentum_"): torch.zeros(1) for key in state if "base_" in key}
    torch.save({"epoch": 9, "arch": "resnet50", "state_dict": {**state, **copies},
                "optimizer": {"state": {}, "param_groups": []}}, path)  # fmt: skip
    return path


def pixels(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_features_are_what_the_predictor_returns(moco, checkpoint):
    encoder = load_encoder(checkpoint, MEAN, STD, batch_size=2)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    with torch.no_grad():
        expected = moco.predictor(moco.base_encoder((pixels() / 255 - mean) / std))
    torch.testing.assert_close(encoder(pixels()), expected)
    assert encoder.facts == {"encoder": "MoCo v3 resnet50, moco.pth.tar", "width": 7}


def test_a_file_without_the_head_gives_the_features_of_the_resnet(moco, state, tmp_path):
    body = {key.removeprefix("module."): value for key, value in state.items() if "base_" in key and ".fc." not in key}
    torch.save(body, tmp_path / "body.pt")
    encoder = load_encoder(tmp_path / "body.pt", [0.0] * 3, [1.0] * 3)
    network = copy.copy(moco.base_encoder)
    network._modules = {**network._modules, "fc": nn.Identity()}
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels(2)), network(pixels(2) / 255))
    assert encoder.facts["width"] == 2048


class Small(MoCo):
    """The same around a smaller ResNet, whose last maps have 512 channels."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.base_encoder = small()
        self.base_encoder.fc = perceptron(512, 12, 7, last=True)
        self.predictor = perceptron(7, 12, 7, last=False)


def small(weights: None = None) -> nn.Module:
    return ResNet(BasicBlock, [1, 1, 1, 1])


def without(state, key: str):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: {"conv1.weight": torch.zeros(2, 2)}, "has no base_encoder.conv1.weight; give a checkpoint of"),
        (lambda state: without(state, "base_encoder.layer1.0.bn1.weight"), "the ResNet has no layer1.0.bn1.weight;"),
        (lambda state: {**state, "base_encoder.x": torch.zeros(2, 2)}, "the ResNet has a surplus x;"),
        (lambda state: without(state, "predictor.1.running_var"), "a layer behind the ResNet has no 1.running_var;"),
        (lambda state: {**state, "predictor.3.weight": torch.zeros(7, 5)}, "layers behind the ResNet do not fit"),
        (lambda state: {**state, "predictor.0.weight": torch.full((12, 7), torch.nan)}, "NaN or infinite"),
    ],
)
def test_another_layout_is_one_line(tmp_path, monkeypatch, change, said):
    monkeypatch.setattr(given_encoder, "resnet50", small)
    torch.save(change(Small().state_dict()), tmp_path / "moco.pt")
    with pytest.raises(WrongWeights, match=said) as error:
        load_encoder(tmp_path / "moco.pt", MEAN, STD)
    assert "\n" not in str(error.value)
