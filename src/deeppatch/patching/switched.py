"""The switched model: each sample runs through the original or the patched network, as the router decides."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from deeppatch.graph import folding
from deeppatch.graph.affine import Affine
from deeppatch.patching.attachment import Attachment
from deeppatch.patching.branches import branches
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.patching.router import Maps, Router
from deeppatch.patching.switch import Switch
from deeppatch.patching.units import CorrectedConv2d
from deeppatch.runtime import to_channels_last
from deeppatch.zoo.classifier import Classifier, network_of


class RouterStem(nn.Module):
    """Computes the router's input: the patched channels of the first patched layer in order of execution.

    Both versions of these channels are computed, after the batch normalisation that follows. New filters run in one
    convolution together with the filters that they replace, with the normalisations folded in.
    """

    def __init__(self, attachment: Attachment) -> None:
        super().__init__()
        name, unit = next(iter(attachment.units.items()))
        conv, channels, norm = unit.original, unit.channels, attachment.norm_after.get(name)
        self.original_norm = Affine(attachment.original_modules[norm] if norm else None, conv.weight, channels)
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
        """Return both versions of the maps, from pixels (N, 3, H, W) and the input of the patched layer."""
        maps = self.convolution(entering).contiguous()  # channels first: the statistics take a third of the time
        if self.correction is None:
            return Maps(pixels, *maps.tensor_split(2, 1))
        return Maps(pixels, self.original_norm(maps), self.patched_norm(maps + self.correction(maps)))


class SwitchedModel(Switch):
    """A classifier with its patch and a router, for inference; the logits of a sample do not depend on its batch.

    Both networks are folded, and cut before the first patched layer: the layers before it run once for all samples,
    those after it in the network that each sample is routed to. Networks that cannot be traced, or not be cut there,
    are kept whole instead, and the layers before it run twice (see `branches`). With `vote`, as published, a whole
    batch is routed by majority. `calibration` has the results of `fit_switch`.
    """

    def __init__(self, model: nn.Module, patch: Patch, example: Tensor, router: Router | None = None) -> None:
        super().__init__(("original", "patched"), router)
        self.normalize = copy.deepcopy(model.normalize) if isinstance(model, Classifier) else nn.Identity()
        patched = copy.deepcopy(model)
        attachment = apply(patched, patch, example)
        name = next(iter(attachment.units))
        self.stem = RouterStem(attachment)
        original, changed = (copy.deepcopy(network_of(classifier)).eval() for classifier in (model, patched))
        self.before, self.original, self.patched = branches(original, changed, name, self.normalize(example))
        self.patch = patch
        self.requires_grad_(False).eval()
        to_channels_last(self)

    def run_stem(self, pixels: Tensor) -> tuple[list[Tensor], Maps]:
        """Run pixels (N, 3, H, W) up to the first patched layer.

        Returns the values that later layers read, the input of that layer first, and the maps that the router reads.
        """
        crossing = list(self.before(self.normalize(pixels)))
        return crossing, self.stem(pixels, crossing[0])

    def look(self, pixels: Tensor) -> tuple[list[Tensor], tuple[Maps, ...]]:
        """Return what both networks continue from, and the maps that the router reads."""
        crossing, maps = self.run_stem(pixels)
        return crossing, (maps,)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """What the original and the patched network compute behind the common start."""
        return self.original, self.patched

    def decide(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Return the scores (N,) and which samples (N,) use the patched network."""
        router = self.needed_router()
        scores = router(maps)
        switched = scores > router.threshold
        if router.density is not None:
            switched = switched & ~router.alarms(router.features_of((maps,)))
        if self.vote:
            switched = (switched.float().mean() > 0.5).expand_as(switched)
        return scores, switched

    def run_branches(self, switched: Tensor, crossing: list[Tensor]) -> Tensor:
        """Run the rest of the original or patched network as `switched` (N,) says, and return logits (N, classes)."""
        return self.run_chosen(switched.long(), crossing)


def _with_filters(conv: nn.Conv2d, rows: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return a copy of a convolution with other filters."""
    convolution = copy.deepcopy(conv)
    convolution.out_channels = len(rows)
    convolution.weight, convolution.bias = nn.Parameter(rows.detach()), nn.Parameter(bias.detach())
    return convolution
