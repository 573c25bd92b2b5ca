"""The switched model: each sample runs through the original or the patched network, as the router decides."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from deeppatch.graph import cutting, folding, hooks
from deeppatch.graph.affine import Affine
from deeppatch.patching.attachment import Attachment
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.patching.router import Maps, Router
from deeppatch.patching.units import CorrectedConv2d
from deeppatch.zoo.classifier import Classifier, network_of


class RouterStem(nn.Module):
    """What the router looks at: the replaced channels of the first patched layer, in order of execution.

    Only they run here, in both versions and behind the normalisations that follow; new filters run in one convolution
    with those that they replace, with the normalisations in it.
    """

    def __init__(self, attachment: Attachment) -> None:
        super().__init__()
        name, unit = next(iter(attachment.units.items()))
        conv, channels, norm = unit.original, unit.channels, attachment.norm_after.get(name)
        self.original_norm = Affine(attachment.own[norm] if norm else None, conv.weight, channels)
        self.patched_norm = Affine(attachment.norms[norm] if norm else None, conv.weight, channels)
        self.correction: fx.GraphModule | None = None
        rows = conv.weight[channels]
        bias = rows.new_zeros(len(rows)) if conv.bias is None else conv.bias[channels]
        if isinstance(unit, CorrectedConv2d):
            self.correction = folding.folded(unit.unit)
        else:
            old, new = self.original_norm, self.patched_norm
            rows = torch.cat([rows * old.scale.unsqueeze(1), unit.rows * new.scale.unsqueeze(1)])
            bias = torch.cat([bias * old.scale.flatten() + old.shift.flatten(), new.shift.flatten()])
        self.convolution = _with_filters(conv, rows, bias)

    def forward(self, pixels: Tensor, entering: Tensor) -> Maps:
        """Return both versions, of pixels (N, 3, H, W) and what the layer reads of them."""
        seen = self.convolution(entering).contiguous()  # one plane after the other: statistics take a third of the time
        if self.correction is None:
            return Maps(pixels, *seen.tensor_split(2, 1))
        return Maps(pixels, self.original_norm(seen), self.patched_norm(seen + self.correction(seen)))


class SwitchedModel(nn.Module):
    """A classifier with its patch and a router, for inference; a sample's logits do not depend on its neighbours.

    Both networks are folded, and cut before the first patched layer: what leads to it runs once for all samples, what
    follows once for each. `vote` keeps the published behaviour instead of a decision for each sample: one for the
    batch, by majority. `calibration` has what `fit_switch` found on val.
    """

    def __init__(self, model: nn.Module, patch: Patch, example: Tensor, router: Router | None = None) -> None:
        super().__init__()
        self.normalize = copy.deepcopy(model.normalize) if isinstance(model, Classifier) else nn.Identity()
        patched = copy.deepcopy(model)
        attachment = apply(patched, patch, example)
        name = next(iter(attachment.units))
        graphs = []
        for each in (model, patched):
            network = copy.deepcopy(network_of(each))
            hooks.swap(network, name, nn.Sequential(nn.Identity(), network.get_submodule(name)))
            graphs.append(folding.folded(network))
        self.stem = RouterStem(attachment)
        (self.before, self.original), (_, self.patched) = (cutting.cut(graph, f"{name}.0") for graph in graphs)
        self.router = router
        self.patch = patch
        self.vote = False
        self.calibration: dict[str, Any] = {}
        self.requires_grad_(False).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        with torch.no_grad():
            crossing = self.before(self.normalize(example))
        if not all(isinstance(value, Tensor) and value.shape[:1] == example.shape[:1] for value in crossing):
            raise ValueError(f"the network cannot be cut at {name}: what crosses there is not one map a sample")

    def begin(self, pixels: Tensor) -> tuple[list[Tensor], Maps]:
        """Run pixels (N, 3, H, W) up to the first patched layer.

        Returns what the networks go on with, first of all what that layer reads, and what the router looks at.
        """
        crossing = list(self.before(self.normalize(pixels)))
        return crossing, self.stem(pixels, crossing[0])

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
        if not len(pixels):
            raise ValueError("an empty batch has no logits")
        crossing, maps = self.begin(pixels)
        scores, switched = self.decide(maps)
        count = int(switched.sum())
        if count in (0, len(pixels)):  # nothing to pick and to put together again
            return (self.patched if count else self.original)(*crossing), scores, switched
        return self.finish_each(switched, crossing), scores, switched

    def finish_each(self, switched: Tensor, crossing: list[Tensor]) -> Tensor:
        """Run each sample on through the network that `switched` (N,) says, and return logits (N, classes)."""
        indices = [(switched == patched).nonzero().squeeze(1) for patched in (False, True)]
        paths = zip((self.original, self.patched), indices, strict=True)
        logits = torch.cat([network(*(_rows(value, index) for value in crossing)) for network, index in paths])
        return torch.empty_like(logits).index_copy_(0, torch.cat(indices), logits)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Pick samples; of maps that lie channels last, in the order of memory, so that they are copied whole."""
    if values.ndim != 4 or values.is_contiguous():
        return values.index_select(0, index)
    return values.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def _with_filters(conv: nn.Conv2d, rows: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return a copy of a convolution with other filters."""
    found = copy.deepcopy(conv)
    found.out_channels = len(rows)
    found.weight, found.bias = nn.Parameter(rows.detach()), nn.Parameter(bias.detach())
    return found
