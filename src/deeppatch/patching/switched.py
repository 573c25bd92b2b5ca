"""The switched model: each sample runs through the original or the patched network, as the router decides."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from deeppatch import surgery
from deeppatch.patching.build import Attachment
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.patching.router import Maps, Router
from deeppatch.patching.units import CorrectedConv2d


class _Gate(nn.Module):
    """Stands in for a convolution whose output has been computed already."""

    def __init__(self) -> None:
        super().__init__()
        self.given: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.given is None:
            raise RuntimeError("no output was given")
        return self.given


class Junction(nn.Module):
    """The first patched convolution in both versions, and the normalisation after it in both versions.

    `name` is the convolution's, in order of execution; the networks on either side of it are left alone.
    """

    channels: Tensor

    def __init__(self, network: nn.Module, attachment: Attachment) -> None:
        super().__init__()
        self.name = next(iter(attachment.units))
        unit = attachment.units[self.name]
        self.register_buffer("channels", unit.channels.clone(), persistent=False)
        self.original = network.get_submodule(self.name)
        self.replaced: nn.Module = unit if isinstance(unit, CorrectedConv2d) else _rows_alone(unit.original, unit.rows)
        norm = attachment.norm_after.get(self.name)
        self.original_norm = _ChannelNorm(attachment.own[norm] if norm else None, unit.channels)
        self.replaced_norm = _ChannelNorm(attachment.norms[norm] if norm else None, unit.channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map the convolution's input to its original output (N, C, H, W) and the new channels (N, K, H, W)."""
        y = self.original(x)
        if isinstance(self.replaced, CorrectedConv2d):
            return y, self.replaced.correct(y)
        return y, self.replaced(x)

    def maps(self, pixels: Tensor, y: Tensor, new: Tensor) -> Maps:
        """Return both versions of the replaced channels behind their normalisations."""
        return Maps(pixels, self.original_norm(y.index_select(1, self.channels)), self.replaced_norm(new))


class SwitchedModel(nn.Module):
    """A classifier with its patch and a router; the logits of a sample do not depend on its neighbours.

    `vote` keeps the published behaviour instead: one decision per batch, by majority of the samples.
    """

    def __init__(self, model: nn.Module, patch: Patch, example: Tensor, router: Router | None = None) -> None:
        super().__init__()
        self.normalize = copy.deepcopy(model.get_submodule("normalize"))
        patched = copy.deepcopy(model).eval()
        attachment = apply(patched, patch, example)
        original = copy.deepcopy(model.get_submodule("network")).eval()
        self.junction = Junction(original, attachment)
        self.gates = [_Gate(), _Gate()]
        self.original, self.patched = original, patched.get_submodule("network")
        for network, gate in zip((self.original, self.patched), self.gates, strict=True):
            surgery.swap(network, self.junction.name, gate)
        self.router = router
        self.vote = False
        with torch.no_grad():
            x = self.normalize(example)
            self._starts_network = surgery.input_of(self.original, self.junction.name, x) is x
        self.eval()

    def first_maps(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Maps]:
        """Return normalised input, original first output, its new channels, and what the router looks at."""
        x = self.normalize(pixels)
        entering = x if self._starts_network else surgery.input_of(self.original, self.junction.name, x)
        y, new = self.junction(entering)
        return x, y, new, self.junction.maps(pixels, y, new)

    def decide(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Return the scores (N,) and which samples (N,) take the patched path."""
        if self.router is None:
            raise ValueError("the switched model has no router yet; fit one on val first")
        scores = self.router(maps)
        switched = scores > self.router.threshold
        if self.vote:
            switched = (switched.float().mean() > 0.5).expand_as(switched)
        return scores, switched

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to logits (N, classes)."""
        return self.route(pixels)[0]

    def route(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (N, classes), router scores (N,) and which samples took the patched path (N,)."""
        x, y, new, maps = self.first_maps(pixels)
        scores, switched = self.decide(maps)
        parts: list[tuple[Tensor, Tensor]] = []
        for path in (0, 1):
            chosen = (switched == bool(path)).nonzero().squeeze(1)
            if len(chosen):
                parts.append((chosen, self.run_path(path, x[chosen], y[chosen], new[chosen])))
        if not parts:
            raise ValueError("an empty batch has no logits")
        logits = parts[0][1].new_empty((len(pixels), parts[0][1].shape[1]))
        for chosen, values in parts:
            logits[chosen] = values.to(logits.dtype)
        return logits, scores, switched

    def run_path(self, path: int, x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        """Run the original (0) or the patched (1) network on from its first patched convolution."""
        gate, network = self.gates[path], (self.original, self.patched)[path]
        gate.given = y.index_copy(1, self.junction.channels, new.to(y.dtype)) if path else y
        try:
            return network(x)
        finally:
            gate.given = None


class _ChannelNorm(nn.Module):
    """A batch normalisation of some channels alone, with running statistics; the identity where there is none."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.Module | None, channels: Tensor) -> None:
        super().__init__()
        count = len(channels)
        scale, shift = torch.ones(count, device=channels.device), torch.zeros(count, device=channels.device)
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            gamma = norm.weight if norm.affine else torch.ones_like(norm.running_var)
            centre = norm.bias if norm.affine else torch.zeros_like(norm.running_mean)
            scale = (gamma / torch.sqrt(norm.running_var + norm.eps)).detach()[channels]
            shift = centre.detach()[channels] - norm.running_mean[channels] * scale
        self.register_buffer("scale", scale.view(-1, 1, 1))
        self.register_buffer("shift", shift.view(-1, 1, 1))

    def forward(self, y: Tensor) -> Tensor:
        return y * self.scale + self.shift


def _rows_alone(original: nn.Conv2d, rows: Tensor) -> nn.Conv2d:
    conv = copy.deepcopy(original)
    conv.out_channels, conv.bias = len(rows), None
    conv.weight = nn.Parameter(rows.detach().clone(), requires_grad=False)
    return conv
