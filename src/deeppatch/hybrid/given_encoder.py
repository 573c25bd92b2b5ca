"""Read an encoder that was trained elsewhere: a torchvision ResNet-50 in a checkpoint of MoCo v3."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from deeppatch.data.views import to_float
from deeppatch.errors import WrongWeights
from deeppatch.graph.hooks import eval_mode
from deeppatch.progress import track
from deeppatch.runtime import autocast
from deeppatch.zoo.checks import check_shapes, check_values
from deeppatch.zoo.classifier import Normalize
from deeppatch.zoo.weights import read

BASE, PREDICTOR = "base_encoder.", "predictor."
LAYOUT = "give a checkpoint of MoCo v3 that holds a torchvision ResNet-50: base_encoder.conv1.weight and so on"


@dataclass(frozen=True)
class GivenEncoder:
    """An encoder from a file, which is called with uint8 pixels (N, 3, H, W); `facts` has its name and its width."""

    network: nn.Module
    facts: dict[str, Any]
    batch_size: int = 256
    amp: bool = False

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Return features, float32 (N, D), in eval mode."""
        parts = pixels.split(self.batch_size)
        with eval_mode(self.network), autocast(pixels.device, self.amp):
            return torch.cat([self.network(to_float(part)).float() for part in track(parts, len(parts), "encoding")])


def load_encoder(
    path: Path,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    amp: bool = False,
) -> GivenEncoder:
    """Load a ResNet-50 that MoCo v3 has trained, with projector and predictor where the file has both.

    MoCo v3: Chen, Xie and He, "An empirical study of training self-supervised vision transformers", ICCV 2021.
    HybridRepair compares images by what the predictor returns; a file without these layers gives the 2,048 features of
    the ResNet. The averaged copy of the encoder and the optimizer are ignored, and nothing in the file is unpickled.

    Args:
        path: A torch checkpoint or .safetensors file.
        mean: The mean of each channel by which pixels in [0, 1] are normalised; HybridRepair takes the classifier's.
        std: The standard deviation of each channel.
        device: Where it computes.
        batch_size: The number of images in a batch.
        amp: Whether forward passes run in bfloat16.

    Returns:
        The encoder, for `encode` of `choose_labels`.

    Raises:
        WrongWeights: When the file is damaged, or is no ResNet-50 in this layout.
    """
    state = {re.sub(r"^(module\.)+", "", key): value for key, value in read(path).items()}
    backbone = {key.removeprefix(BASE): value for key, value in state.items() if key.startswith(BASE)}
    if "conv1.weight" not in backbone:
        raise WrongWeights(f"{path} has no {BASE}conv1.weight; {LAYOUT}")
    head = {key.removeprefix("fc."): value for key, value in backbone.items() if key.startswith("fc.")}
    predictor = {key.removeprefix(PREDICTOR): value for key, value in state.items() if key.startswith(PREDICTOR)}
    with torch.device("meta"):
        network: nn.Module = resnet50(weights=None)
        network.fc = nn.Identity()
    body = {key: value for key, value in backbone.items() if not key.startswith("fc.")}
    layers = [_loaded(network.to_empty(device="cpu"), body, path, "the ResNet")]
    if "0.weight" in head and "0.weight" in predictor:
        layers += [_perceptron(part, path) for part in (head, predictor)]
    whole = nn.Sequential(Normalize(mean, std), *layers).to(device)
    try:
        with torch.no_grad(), eval_mode(whole):
            width = whole(torch.zeros(1, 3, 32, 32, device=device)).shape[1]
    except RuntimeError as error:  # layers whose widths do not fit each other
        raise WrongWeights(f"{path}: the layers behind the ResNet do not fit it; {LAYOUT}") from error
    return GivenEncoder(whole, {"encoder": f"MoCo v3 resnet50, {path.name}", "width": width}, batch_size, amp)


def _perceptron(state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Build the layers of a projector or predictor from their tensors: linear, normalised, and ReLU between them."""
    tensors: dict[int, dict[str, Tensor]] = defaultdict(dict)  # of each layer by its number; ReLU has none
    for key, value in state.items():
        number, _, name = key.partition(".")
        if number.isdecimal():
            tensors[int(number)][name] = value
    layers = [_layer(tensors[number]) for number in range(1 + max(tensors))]
    return _loaded(nn.Sequential(*layers), state, path, "a layer behind the ResNet")


def _loaded(network: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> nn.Module:
    """Load a state dict whose names are exactly those of a network; batch counters may be missing."""
    own = network.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    if missing := sorted(own.keys() - state.keys() - counters):
        raise WrongWeights(f"{path}: {what} has no {missing[0]}; {LAYOUT}")
    if surplus := sorted(state.keys() - own.keys()):
        raise WrongWeights(f"{path}: {what} has a surplus {surplus[0]}; {LAYOUT}")
    tensors = {key: state[key] for key in own if key in state}
    check_shapes(tensors, own, path)
    check_values(tensors, own, dict(zip(tensors, tensors, strict=True)), path)
    network.load_state_dict({**dict.fromkeys(counters, torch.tensor(0)), **tensors})
    return network


def _layer(tensors: Mapping[str, Tensor]) -> nn.Module:
    if not tensors:
        return nn.ReLU()
    if "running_mean" in tensors:
        return nn.BatchNorm1d(len(tensors["running_mean"]), affine="weight" in tensors)
    weight = tensors.get("weight", torch.empty(0, 0)).flatten(1)
    return nn.Linear(weight.shape[-1], len(weight), bias="bias" in tensors)
