"""The patch: a small file with the new filters, their places, the patch's normalisation statistics, the base's hash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.errors import StaleArtifact
from deeppatch.graph.hooks import convolutions
from deeppatch.patching.attachment import Attachment, attach
from deeppatch.patching.units import UNITS

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Patch:
    """A trained patch.

    `kind` is replace or crtunit; `base` the digest of the model it was trained on; `channels` the chosen output
    channels by convolution; `tensors` the new parameters (`units/LAYER/...`) and statistics (`norms/LAYER/...`).
    """

    kind: str
    base: str
    channels: dict[str, list[int]]
    tensors: dict[str, Tensor]

    def to_bytes(self) -> bytes:
        """Serialise as safetensors."""
        places = {f"channels/{name}": torch.tensor(chosen) for name, chosen in self.channels.items()}
        return tensors_to_bytes({**places, **self.tensors}, {"kind": self.kind, "base": self.base})

    @staticmethod
    def from_bytes(content: bytes, origin: Path) -> Patch:
        """Read what `to_bytes` made; StaleArtifact when the file is damaged or no patch."""
        tensors, meta = tensors_from_bytes(content, origin)
        if not {"kind", "base"} <= meta.keys() or meta["kind"] not in UNITS:
            raise StaleArtifact(f"{origin} is no patch; give a patch.safetensors that correct left")
        places = {k.removeprefix("channels/"): v.tolist() for k, v in tensors.items() if k.startswith("channels/")}
        rest = {key: value for key, value in tensors.items() if not key.startswith("channels/")}
        return Patch(meta["kind"], meta["base"], places, rest)


def extract(attachment: Attachment, base: str) -> Patch:
    """Return the trained patch that stands in a network; `base` is the digest of the model without it."""
    tensors: dict[str, Tensor] = {}
    for name, unit in attachment.units.items():
        tensors |= {f"units/{name}/{key}": value.detach().clone() for key, value in unit.new_parameters().items()}
    for name, norm in attachment.norms.items():
        tensors |= {f"norms/{name}/{key}": getattr(norm, key).clone() for key in STATISTICS}
    kind = next(iter(attachment.units.values())).kind
    return Patch(kind, base, {name: unit.channels.tolist() for name, unit in attachment.units.items()}, tensors)


def apply(model: nn.Module, patch: Patch, example: Tensor) -> Attachment:
    """Apply a patch to a classifier in place, in its inference form; the result's `remove` undoes it bit for bit.

    `example` is a batch of pixels (N, 3, H, W). StaleArtifact when the model is not the one that was patched.
    """
    if state_digest(model.state_dict()) != patch.base:
        raise StaleArtifact("the patch was trained on other base weights; apply it to those, or run correct for these")
    network = model.get_submodule("network")
    _check_layers(network, patch)
    attachment = attach(network, patch.channels, patch.kind, model.get_submodule("normalize")(example))
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
