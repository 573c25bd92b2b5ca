"""A bank of normalisation statistics: for each condition its own, selected for each image by its frequencies."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.graph.hooks import Hook, hooked
from deeppatch.graph.statistics import batch_norms
from deeppatch.retrain.selector import Selector
from deeppatch.storage import is_of
from deeppatch.zoo.classifier import device_of

SELECTOR = ("weight", "bias", "threshold")


@dataclass(frozen=True)
class Bank:
    """Statistics of all batch normalisations of a model for several conditions, as scales and shifts, and a selector.

    Args:
        base: The digest of the model that it was made for (`artifacts.state_digest`).
        conditions: The names of the conditions; the first is `clean`, for which the model stays as it is.
        norms: The names of the batch normalisations.
        tensors: `scale` and `shift`, float32 (conditions, channels of all normalisations), and `selector/weight`,
            `selector/bias` and `selector/threshold`.
        about: Further metadata of the file, as JSON values, such as `classes`.
        facts: What was found when it was made; not part of the file.

    Example:
        >>> norm = nn.Sequential(nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        >>> selector = {"selector/weight": torch.zeros(2, 16), "selector/bias": torch.tensor([0.0, 1.0])}
        >>> tables = {"scale": torch.ones(2, 2), "shift": torch.tensor([[0.0, 0.0], [5.0, 7.0]])}
        >>> tensors = {**tables, **selector, "selector/threshold": torch.tensor(0.5)}
        >>> bank = Bank(state_digest(norm.state_dict()), ("clean", "blur"), ("0",), tensors)
        >>> bank.apply(norm)(torch.zeros(1, 2, 4, 4)).tolist()
        [[5.0, 7.0]]
        >>> Bank.from_bytes(bank.to_bytes()).conditions
        ('clean', 'blur')
    """

    base: str
    conditions: tuple[str, ...]
    norms: tuple[str, ...]
    tensors: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict, compare=False)

    def to_bytes(self) -> bytes:
        """Serialise as safetensors."""
        meta = {"bank": list(self.conditions), "base": self.base, "norms": list(self.norms), **self.about}
        return tensors_to_bytes(self.tensors, meta)

    @staticmethod
    def from_bytes(content: bytes, origin: Path = Path("the bank")) -> Bank:
        """Return the bank that `to_bytes` has serialised; StaleArtifact when the file is damaged or not a bank."""
        tensors, meta = tensors_from_bytes(content, origin)
        wanted = {"scale", "shift", *(f"selector/{name}" for name in SELECTOR)}
        names = all(is_of(meta.get(name), [str]) for name in ("bank", "norms"))
        if "base" not in meta or not names or not meta["norms"] or tensors.keys() != wanted:
            raise StaleArtifact(f"{origin} is not a bank of statistics; give a bank.safetensors that correct left")
        if not _fits(tensors, len(meta["bank"])):
            raise StaleArtifact(f"{origin} is damaged: its tensors are not those of a bank; run correct again")
        about = {name: value for name, value in meta.items() if name not in ("bank", "base", "norms")}
        return Bank(meta["base"], tuple(meta["bank"]), tuple(meta["norms"]), tensors, about)

    def apply(self, model: nn.Module) -> BankedClassifier:
        """Return a classifier that normalises each image by the statistics of its condition, in eval mode.

        Args:
            model: The model that the bank was made for; it is not changed.

        Raises:
            StaleArtifact: When it is another model.
        """
        if state_digest(model.state_dict()) != self.base:
            raise StaleArtifact("the bank of statistics was made for other weights; make one for these")
        return BankedClassifier(model, self).eval()


class BankedClassifier(nn.Module):
    """A classifier whose normalisations have the statistics of each image's condition; one pass for a mixed batch.

    Where all images are clean it is the model itself, bit for bit.

    Args:
        model: The classifier; it is copied.
        bank: The bank.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, bank: Bank) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        self.conditions = bank.conditions
        self.norms = bank.norms
        device = device_of(model)
        selector = {name: bank.tensors[f"selector/{name}"] for name in SELECTOR}
        self.selector = Selector(selector["weight"], selector["bias"], selector["threshold"]).to(device)
        self.register_buffer("scale", bank.tensors["scale"].to(device))
        self.register_buffer("shift", bank.tensors["shift"].to(device))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, classes) of pixels (N, 3, H, W) in [0, 1]."""
        return self.answer(pixels, self.selector(pixels))

    def answer(self, pixels: Tensor, conditions: Tensor) -> Tensor:
        """Return logits (N, classes) with the condition of each image, int64 (N,), given."""
        if not conditions.any():
            return self.model(pixels)
        norms, first = batch_norms(self.model), 0
        with ExitStack() as stack:
            for norm in (norms[name] for name in self.norms):
                last = first + norm.num_features
                stack.enter_context(hooked(norm, self._hook(conditions, slice(first, last))))
                first = last
            return self.model(pixels)

    def _hook(self, conditions: Tensor, channels: slice) -> Hook:
        """Return a hook that replaces what a normalisation leaves, except for clean images."""

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            maps = inputs[0]
            if len(maps) != len(conditions):
                raise UserError(
                    "a normalisation of this network sees no row for each image, so that none can be selected"
                )
            shape = (len(maps), -1, *[1] * (maps.ndim - 2))
            scale, shift = (each[conditions, channels].view(shape) for each in (self.scale, self.shift))
            clean = (conditions == 0).view(-1, *[1] * (maps.ndim - 1))
            return torch.where(clean, output, (maps * scale + shift).to(output.dtype))

        return hook


def _fits(tensors: dict[str, Tensor], conditions: int) -> bool:
    shapes = {name: tuple(each.shape) for name, each in tensors.items()}
    tables = shapes["scale"] == shapes["shift"] and len(shapes["scale"]) == 2 and shapes["scale"][0] == conditions
    rows = shapes["selector/weight"][:1] == shapes["selector/bias"] == (conditions,)
    numbers = all(each.is_floating_point() for each in tensors.values())
    return bool(conditions and numbers and tables and rows and tensors["selector/threshold"].numel() == 1)


def tables(networks: list[nn.Module]) -> dict[str, Tensor]:
    """Return `scale` and `shift` of all batch normalisations of networks, float32 (networks, channels).

    Scale is gamma / sqrt(variance + eps), shift is beta - mean * scale.
    """
    rows: dict[str, list[Tensor]] = {"scale": [], "shift": []}
    for network in networks:
        found = [_affine(norm) for norm in batch_norms(network).values()]
        for name, each in zip(rows, zip(*found, strict=True), strict=True):
            rows[name].append(torch.cat(list(each)).float())
    return {name: torch.stack(each) for name, each in rows.items()}


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gamma, beta = (
        torch.full_like(mean, usual) if own is None else own.detach().double()
        for own, usual in ((norm.weight, 1.0), (norm.bias, 0.0))
    )
    scale = gamma / (variance + norm.eps).sqrt()
    return scale, beta - mean * scale
