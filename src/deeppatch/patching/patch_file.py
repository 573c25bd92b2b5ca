"""The patch: new filters, the channels they replace, normalisation statistics, and the digest of the patched model."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch.artifacts import check_meta, state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.errors import StaleArtifact
from deeppatch.graph.hooks import convolutions
from deeppatch.patching.attachment import Attachment, attach
from deeppatch.patching.units import UNITS
from deeppatch.training import History
from deeppatch.zoo.classifier import device_of, network_of, normalize_of

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Patch:
    """A trained patch of one model.

    Args:
        kind: `replace` (new filters) or `crtunit` (correction units behind the old filters).
        base: The digest of the model that the patch was trained on (`artifacts.state_digest`).
        channels: The patched output channels by convolution.
        tensors: The new parameters (`units/LAYER/...`) and the running statistics (`norms/LAYER/...`).
        about: Further metadata of the patch file, as JSON values: `classes`, `image_size` [H, W], `mean`, `std`.
        history: The training history if known; it is not part of the file.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from deeppatch.artifacts import state_digest
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> new_filters = {"units/0/rows": torch.ones(1, 3, 3, 3)}
        >>> patch = Patch("replace", state_digest(model.state_dict()), {"0": [2]}, new_filters)
        >>> patched = patch.apply(model)
        >>> bool((patched[0].weight[2] == 1).all()), bool((model[0].weight[2] == 1).all())
        (True, False)
        >>> Patch.from_bytes(patch.to_bytes()).channels
        {'0': [2]}
    """

    kind: str
    base: str
    channels: dict[str, list[int]]
    tensors: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)
    history: History | None = field(default=None, compare=False)

    def to_bytes(self) -> bytes:
        """Serialise as safetensors."""
        channels = {f"channels/{name}": torch.tensor(chosen) for name, chosen in self.channels.items()}
        meta = {"kind": self.kind, "base": self.base} | ({"about": self.about} if self.about else {})
        return tensors_to_bytes({**channels, **self.tensors}, meta)

    @staticmethod
    def from_bytes(content: bytes, origin: Path = Path("the patch")) -> Patch:
        """Return the patch that `to_bytes` has serialised; StaleArtifact when the file is damaged or not a patch."""
        tensors, meta = tensors_from_bytes(content, origin)
        about = meta.get("about", {})
        check_meta(about, origin)
        chosen = {k.removeprefix("channels/"): v for k, v in tensors.items() if k.startswith("channels/")}
        of_channels = chosen and all(v.dtype == torch.int64 and v.ndim == 1 for v in chosen.values())
        if not {"kind", "base"} <= meta.keys() or meta["kind"] not in UNITS or not of_channels:
            raise StaleArtifact(f"{origin} is not a patch; give a patch.safetensors that correct left")
        channels = {name: v.tolist() for name, v in chosen.items()}
        parameters = {key: value for key, value in tensors.items() if not key.startswith("channels/")}
        numbers = [value for key, value in parameters.items() if not key.endswith("num_batches_tracked")]
        if not all(value.is_floating_point() and bool(value.isfinite().all()) for value in numbers):
            raise StaleArtifact(f"{origin} is damaged: its parameters are not finite numbers; train the patch again")
        return Patch(meta["kind"], meta["base"], channels, parameters, about)

    def apply(self, model: nn.Module, example: Tensor | None = None) -> nn.Module:
        """Return a copy of a model with the patch applied, in eval mode.

        Args:
            model: The model that the patch was trained on; it is not changed.
            example: Pixels (N, 3, H, W) in [0, 1] to run the model on once (default: black images of the size that the
                patch was trained on, 32x32 if that is unknown).

        Raises:
            StaleArtifact: When the patch was trained on another model.
        """
        patched = copy.deepcopy(model).eval()
        if example is None:
            height, width = self.about.get("image_size", (32, 32))
            example = torch.zeros(2, 3, height, width, device=device_of(model))
        apply(patched, self, example)
        return patched


def extract(
    attachment: Attachment, base: str, *, history: History | None = None, about: dict[str, Any] | None = None
) -> Patch:
    """Return the trained patch that is attached to a network; `base` is the digest of the model without it."""
    tensors: dict[str, Tensor] = {}
    for name, unit in attachment.units.items():
        tensors |= {f"units/{name}/{key}": value.detach().clone() for key, value in unit.new_parameters().items()}
    for name, norm in attachment.norms.items():
        tensors |= {f"norms/{name}/{key}": getattr(norm, key).clone() for key in STATISTICS}
    kind = next(iter(attachment.units.values())).kind
    channels = {name: unit.channels.tolist() for name, unit in attachment.units.items()}
    return Patch(kind, base, channels, tensors, about or {}, history)


def apply(model: nn.Module, patch: Patch, example: Tensor) -> Attachment:
    """Apply a patch to a model in place, in its inference form; `remove` of the result restores the model.

    `example` is a batch of pixels (N, 3, H, W). StaleArtifact when the patch was trained on another model.
    """
    if state_digest(model.state_dict()) != patch.base:
        raise StaleArtifact("the patch was trained on other base weights; apply it to those, or run correct for these")
    network = network_of(model)
    _check_layers(network, patch)
    attachment = attach(network, patch.channels, patch.kind, normalize_of(model, example))
    expected = {key: value.shape for key, value in extract(attachment, patch.base).tensors.items()}
    if expected != {key: value.shape for key, value in patch.tensors.items()}:
        attachment.remove()
        raise StaleArtifact("the patch is damaged: its tensors are not those of its layers; train it again")
    with torch.no_grad():
        for name, unit in attachment.units.items():
            for key, value in unit.new_parameters().items():
                value.copy_(patch.tensors[f"units/{name}/{key}"])
        for name, norm in attachment.norms.items():
            for key in STATISTICS:
                getattr(norm, key).copy_(patch.tensors[f"norms/{name}/{key}"])
    attachment.merge()
    network.eval()
    return attachment


def _check_layers(network: nn.Module, patch: Patch) -> None:
    widths = {name: conv.out_channels for name, conv in convolutions(network).items()}
    for name, channels in patch.channels.items():
        if not channels or not set(channels) <= set(range(widths.get(name, 0))):
            raise StaleArtifact(f"the patch is damaged: {name} has no such channels; train it again")
