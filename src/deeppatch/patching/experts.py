"""Switch between whole networks, such as a fine-tuned one or several patched ones, and the original network."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deeppatch.errors import UserError
from deeppatch.graph import hooks
from deeppatch.graph.affine import Affine
from deeppatch.patching.router import Maps, Router
from deeppatch.patching.switch import Switch
from deeppatch.runtime import to_channels_last
from deeppatch.zoo.classifier import Classifier, network_of, normalize_of


class FirstMaps(nn.Module):
    """Maps pixels to the maps of a network's first convolution, behind the normalisation that follows it."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        network = network_of(model)
        normalised = normalize_of(model, example)
        order, norm_after = hooks.execution_order(network, normalised)
        convolutions = {name: each for name, each in network.named_modules() if isinstance(each, nn.Conv2d)}
        name = next((each for each in order if each in convolutions), None)
        if name is None or not _reads(network, name, normalised):
            raise UserError(
                "the network does not begin with a convolution that reads the images; choose the router benefit-both"
            )
        conv, norm = convolutions[name], norm_after.get(name)
        self.normalize = copy.deepcopy(model.normalize) if isinstance(model, Classifier) else nn.Identity()
        self.convolution = copy.deepcopy(conv)
        self.norm = Affine(network.get_submodule(norm) if norm else None, conv.weight)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to maps (N, K, H', W')."""
        maps: Tensor = self.norm(self.convolution(self.normalize(pixels)))
        return maps.contiguous()


class SwitchedNetworks(Switch):
    """A classifier, other whole classifiers, and a router, for inference; nothing is shared between the networks.

    The router reads the maps of the first convolution of each network; where one does not begin with a convolution,
    only routers that read the answers of all networks can be used.

    Args:
        model: The original classifier.
        others: The other classifiers by name, with the same classes.
        example: Pixels (N, 3, H, W) in [0, 1].
        router: What decides.

    >>> from torch import nn
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> switched = SwitchedNetworks(network, {"again": network}, torch.rand(2, 3, 8, 8))
    >>> switched.names, len(switched.look(torch.rand(5, 3, 8, 8))[1])
    (('original', 'again'), 1)
    """

    def __init__(
        self, model: nn.Module, others: Mapping[str, nn.Module], example: Tensor, router: Router | None = None
    ) -> None:
        super().__init__(("original", *others), router)
        classifiers = [copy.deepcopy(each).eval() for each in (model, *others.values())]
        self.classifiers = nn.ModuleList(classifiers)
        self.first: nn.ModuleList | None = None
        try:
            self.first = nn.ModuleList([FirstMaps(each, example) for each in classifiers])
        except UserError:
            if router is not None and not router.reads_answers:
                raise
        self.requires_grad_(False).eval()
        to_channels_last(self)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The classifiers, the original one first; each maps pixels to logits."""
        return tuple(self.classifiers)

    def look(self, pixels: Tensor) -> tuple[list[Tensor], tuple[Maps, ...]]:
        """Return the pixels, and the first maps of each network beside those of the original one."""
        if self.first is None:  # what is left are the statistics of the pixels
            none = pixels.new_zeros(len(pixels), 0, 1, 1)
            return [pixels], tuple(Maps(pixels, none, none) for _ in self.names[1:])
        original, *others = (first(pixels) for first in self.first)
        return [pixels], tuple(Maps(pixels, original, other) for other in others)


@torch.no_grad()
def _reads(network: nn.Module, name: str, normalised: Tensor) -> bool:
    """Tell whether what the module called `name` reads are the images."""
    seen: list[Tensor] = []
    with (
        hooks.eval_mode(network),
        hooks.hooked_before(network.get_submodule(name), lambda _module, inputs: seen.append(inputs[0])),
    ):
        network(normalised)
    return seen[0].shape == normalised.shape and bool((seen[0] == normalised).all())
