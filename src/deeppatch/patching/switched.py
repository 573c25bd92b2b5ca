"""The switched model: each sample runs through the original or the patched network, as the router decides."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from deeppatch import surgery
from deeppatch.patching.build import Attachment
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.patching.router import Maps, Router
from deeppatch.patching.units import CorrectedConv2d


class Junction(nn.Module):
    """The first patched convolution, in order of execution, in both versions, and both normalisations of its output.

    New filters run in one convolution with the original ones. Where the normalisation alone reads the convolution
    (`alone`), it is computed here instead of in the networks; the new channels have it in them.
    """

    channels: Tensor
    seen: Tensor

    def __init__(self, attachment: Attachment, alone: bool) -> None:
        super().__init__()
        name, unit = next(iter(attachment.units.items()))
        self.alone = alone
        self.width = unit.original.out_channels
        self.register_buffer("channels", unit.channels.clone(), persistent=False)
        added = self.width + torch.arange(len(unit.channels), device=unit.channels.device)
        self.register_buffer("seen", torch.cat([unit.channels, added]), persistent=False)
        norm = attachment.norm_after.get(name)
        weight = unit.original.weight
        self.original_norm = surgery.Affine(attachment.own[norm] if norm else None, weight)
        self.patched_norm = surgery.Affine(attachment.norms[norm] if norm else None, weight)
        self.convolution = copy.deepcopy(unit.original)
        self.correction: fx.GraphModule | None = None
        if isinstance(unit, CorrectedConv2d):
            self.correction = surgery.folded(unit.unit)
        else:
            scale, shift = (self.patched_norm if alone else surgery.Affine(None, weight)).of(unit.channels)
            self.convolution = _with_filters(unit.original, unit.rows * scale.unsqueeze(1), shift.flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Map the convolution's input to its original output with the new channels behind it (N, C + K, H, W)."""
        y: Tensor = self.convolution(x)
        if self.correction is None:
            return y
        picked = y[:, self.channels]
        new = picked + self.correction(picked)
        return torch.cat([y, self.patched_norm(new, self.channels) if self.alone else new], 1)

    def maps(self, pixels: Tensor, both: Tensor) -> Maps:
        """Return both versions of the replaced channels behind their normalisations; `both` is what `forward` gave."""
        seen = both[:, self.seen]  # picked at once, as one plane after the other: statistics take a third of the time
        original, new = seen.tensor_split(2, 1)
        new = new if self.alone else self.patched_norm(new, self.channels)
        return Maps(pixels, self.original_norm(original, self.channels), new)

    def output(self, patched: bool, both: Tensor) -> Tensor:
        """Return what one of the networks goes on with (N, C, H, W), newly allocated."""
        y = both[:, : self.width]
        if self.alone:
            y = (self.patched_norm if patched else self.original_norm)(y)
        else:
            y = y.clone(memory_format=torch.channels_last)
        return y.index_copy_(1, self.channels, both[:, self.width :]) if patched else y


class SwitchedModel(nn.Module):
    """A classifier with its patch and a router, for inference; a sample's logits do not depend on its neighbours.

    Both networks are folded, and cut at the first patched convolution: what leads to it, and it, run once for all
    samples; what follows runs once for each. `vote` keeps the published behaviour instead of a decision for each
    sample: one for the batch, by majority.
    """

    def __init__(self, model: nn.Module, patch: Patch, example: Tensor, router: Router | None = None) -> None:
        super().__init__()
        self.normalize = copy.deepcopy(model.get_submodule("normalize"))
        patched = copy.deepcopy(model)
        attachment = apply(patched, patch, example)
        name = next(iter(attachment.units))
        norm = attachment.norm_after.get(name)
        networks = [copy.deepcopy(each.get_submodule("network")) for each in (model, patched)]
        for network in networks:
            surgery.swap(network, name, nn.Identity())
        graphs = [surgery.folded(network) for network in networks]
        alone = norm if norm == surgery.only_reader(graphs[0], name) else None
        if alone:
            for graph in graphs:
                surgery.swap(graph, alone, nn.Identity())
        self.junction = Junction(attachment, alone is not None)
        (self.before, self.original), (_, self.patched) = (surgery.cut(graph, name) for graph in graphs)
        self.router = router
        self.vote = False
        self.requires_grad_(False).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        with torch.no_grad():
            crossing = self.before(self.normalize(example))
        if not all(isinstance(value, Tensor) and value.shape[:1] == example.shape[:1] for value in crossing):
            raise ValueError(f"the network cannot be cut at {name}: what crosses there is not one map a sample")

    def begin(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run normalised input (N, 3, H, W) up to the first patched convolution.

        Returns its output in both versions, and what else is computed by then that the networks go on with.
        """
        entering, *others = self.before(x)
        return self.junction(entering), others

    def first_maps(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Maps]:
        """Return normalised input, original first output, its new channels, and what the router looks at."""
        x = self.normalize(pixels)
        both, _ = self.begin(x)
        width = self.junction.width
        return x, both[:, :width], both[:, width:], self.junction.maps(pixels, both)

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
        both, others = self.begin(self.normalize(pixels))
        scores, switched = self.decide(self.junction.maps(pixels, both))
        count = int(switched.sum())
        if count in (0, len(pixels)):  # nothing to pick and to put together again
            return self.finish(count > 0, both, others), scores, switched
        return self.finish_each(switched, both, others), scores, switched

    def finish(self, patched: bool, both: Tensor, others: list[Tensor]) -> Tensor:
        """Run all samples on through the original or the patched network, and return logits (N, classes)."""
        network = self.patched if patched else self.original
        logits: Tensor = network(self.junction.output(patched, both), *others)
        return logits

    def finish_each(self, switched: Tensor, both: Tensor, others: list[Tensor]) -> Tensor:
        """Run each sample on through the network that `switched` (N,) says, and return logits (N, classes)."""
        places = [(switched == patched).nonzero().squeeze(1) for patched in (False, True)]
        parts = [
            self.finish(bool(path), _rows(both, at), [_rows(value, at) for value in others])
            for path, at in enumerate(places)
        ]
        logits = torch.cat(parts)
        return torch.empty_like(logits).index_copy_(0, torch.cat(places), logits)


def _rows(values: Tensor, at: Tensor) -> Tensor:
    """Pick samples; of maps, which lie channels last, in the order of memory, so that they are copied whole."""
    if values.ndim != 4:
        return values[at]
    return values.permute(0, 2, 3, 1).index_select(0, at).permute(0, 3, 1, 2)


def _with_filters(conv: nn.Conv2d, rows: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return a copy of a convolution with more filters behind its own, and their bias."""
    own = bias.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    wider = copy.deepcopy(conv)
    wider.out_channels += len(rows)
    wider.weight = nn.Parameter(torch.cat([conv.weight, rows]).detach())
    wider.bias = nn.Parameter(torch.cat([own, bias]).detach())
    return wider
