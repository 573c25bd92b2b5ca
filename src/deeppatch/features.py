"""Compute the logits of a classifier and the features that its last linear layer reads."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.artifacts import state_digest
from deeppatch.cache import ContentCache, Entry
from deeppatch.data.files import StoredPixels
from deeppatch.data.views import to_float
from deeppatch.errors import UserError
from deeppatch.graph.hooks import eval_mode, hooked
from deeppatch.progress import track

SHARD = 2**16


@dataclass(frozen=True)
class Embeddings:
    """Logits (N, C) and penultimate features (N, D) of N images, float32."""

    logits: Tensor
    features: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Softmax (N, C) of the logits."""
        return self.logits.softmax(1)


@torch.no_grad()
def embed(
    model: nn.Module,
    pixels: Tensor | StoredPixels,
    *,
    batch_size: int = 256,
    amp: bool = False,
    label: str = "features",
    layer: nn.Module | None = None,
) -> Embeddings:
    """Compute logits and features of uint8 pixels (N, 3, H, W), in eval mode and on the model's device.

    Args:
        model: Maps float pixels (N, 3, H, W) in [0, 1] to logits (N, C); it must end in a linear layer.
        pixels: The images, in memory on any device, or in files.
        batch_size: The number of images per forward pass.
        amp: Whether forward passes run in bfloat16.
        label: The name of the progress bar.
        layer: The module whose input is returned as features (default: the last linear layer).

    Returns:
        Logits and features, on the model's device.

    Raises:
        UserError: When the network does not end in a linear layer.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> found = embed(network, torch.zeros(5, 3, 2, 2, dtype=torch.uint8))
    >>> found.logits.shape, found.features.shape
    (torch.Size([5, 3]), torch.Size([5, 4]))
    """
    device = next(model.parameters()).device
    if layer is None:
        _, layer = last_linear(model, to_float(pixels[:1].to(device)))
    logits, features = [], []
    starts = range(0, pixels.shape[0], batch_size)
    with eval_mode(model), hooked(layer, lambda _module, inputs, _output: features.append(inputs[0].float())):
        for start in track(starts, len(starts), label):
            batch = to_float(pixels[start : start + batch_size].to(device))
            with runtime.autocast(device, amp):
                logits.append(model(batch).float())
    return Embeddings(torch.cat(logits), torch.cat(features))


def penultimate(
    model: nn.Module,
    pixels: Tensor | StoredPixels,
    *,
    batch_size: int = 256,
    amp: bool = False,
    label: str = "features",
    cache: ContentCache | None = None,
) -> Tensor:
    """Return only the features of `embed`, float32 (N, D), on the model's device.

    With a cache they are stored in shards of 65,536 images, keyed by digests of weights and images, and by precision.
    """
    if cache is None:
        return embed(model, pixels, batch_size=batch_size, amp=amp, label=label).features
    device = next(model.parameters()).device
    name, _ = last_linear(model, to_float(pixels[:1].to(device)))
    facts = {"model": state_digest(model.state_dict()), "layer": name, "device": device.type, "amp": amp}
    parts = []
    for start in range(0, pixels.shape[0], SHARD):
        shard = _slice(pixels, start, start + SHARD)
        key = {**facts, "images": pixels_digest(shard)}
        entry = cache.read(key)
        if entry is None:
            entry = Entry({"features": embed(model, shard, batch_size=batch_size, amp=amp, label=label).features})
            cache.write(key, entry)
        parts.append(entry.tensors["features"].to(device))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def pixels_digest(pixels: Tensor | StoredPixels) -> str:
    """Return a SHA-256 of images: of values and shape, or of the paths, sizes and times of image files."""
    if isinstance(pixels, StoredPixels):
        return pixels.digest()
    return hashlib.sha256(f"{tuple(pixels.shape)}\n".encode() + pixels.cpu().contiguous().numpy().tobytes()).hexdigest()


def _slice(pixels: Tensor | StoredPixels, start: int, stop: int) -> Tensor | StoredPixels:
    if isinstance(pixels, StoredPixels):
        return pixels.take(torch.arange(start, min(stop, pixels.shape[0])))
    return pixels[start:stop]


@torch.no_grad()
def last_linear(model: nn.Module, example: Tensor) -> tuple[str, nn.Linear]:
    """Find the linear layer that computes the logits of a classifier.

    Args:
        model: Maps float pixels (N, 3, H, W) in [0, 1] to logits (N, C).
        example: Such pixels on the model's device; one image is enough.

    Returns:
        The name of the layer within the model, and the layer.

    Raises:
        UserError: When the logits are not the output of a linear layer that runs exactly once.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> last_linear(network, torch.zeros(1, 3, 2, 2))
    ('3', Linear(in_features=4, out_features=3, bias=True))
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    outputs: list[tuple[str, Tensor]] = []
    with eval_mode(model), ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(hooked(layer, lambda _m, _i, output, name=name: outputs.append((name, output.clone()))))
        logits = model(example)
    last = outputs[-1][0] if outputs else ""
    once = [name for name, _ in outputs].count(last) == 1
    if not once or logits.ndim != 2 or not torch.equal(outputs[-1][1], logits):
        description = f"its linear layers: {', '.join(layers)}" if layers else "it has no linear layer"
        raise UserError(
            f"this network does not end in a linear layer that computes its logits ({description}); choose another"
        )
    return last, layers[last]
