"""The modules of a network: which kernels each class keeps, and the heads if there are any."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.errors import StaleArtifact
from deeppatch.modular.composition import dissimilarity
from deeppatch.modular.extract import extract
from deeppatch.modular.heads import Heads, Scales
from deeppatch.modular.layers import Layer, layers_to_split
from deeppatch.zoo.classifier import Classifier, device_of


class SearchResult(NamedTuple):
    """The result of a search: masks (classes, kernels) by layer, heads or scales, and a row for each step."""

    masks: Sequence[Tensor]
    heads: Heads | Scales | None
    history: pd.DataFrame


@dataclass(frozen=True)
class Modules:
    """One module for each class of a classifier, whose digest is `base` (Qi et al., ASE 2022; TOSEM 2023).

    `kept` has for each layer of kernels, by its convolutions' names joined by +, which the modules keep: bool
    (classes, kernels). `history` has a row for each epoch or generation of the search, and is in no file.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> modules = Modules("", {"conv1": torch.tensor([[True, False], [True, True]])})
        >>> modules.shares()
        tensor([0.5000, 1.0000])
        >>> Modules.from_bytes(modules.to_bytes(), Path("modules.safetensors")).classes
        2
    """

    base: str
    kept: dict[str, Tensor]
    heads: Heads | Scales | None = None
    history: pd.DataFrame | None = field(default=None, compare=False, repr=False)

    @property
    def classes(self) -> int:
        """How many modules there are."""
        return len(next(iter(self.kept.values())))

    @property
    def has_heads(self) -> bool:
        """Whether heads map scores into (0, 1); otherwise scores are logits, with a scale and a bias or without."""
        return isinstance(self.heads, Heads)

    def to_bytes(self) -> bytes:
        """Serialise as safetensors."""
        heads = self.heads.state_dict() if self.heads else {}
        tensors = {f"kept/{name}": mask for name, mask in self.kept.items()}
        return tensors_to_bytes({**tensors, **{f"heads/{k}": v for k, v in heads.items()}}, {"base": self.base})

    @staticmethod
    def from_bytes(content: bytes, origin: Path) -> Modules:
        """Return the modules that `to_bytes` has serialised; StaleArtifact when the file is damaged or another one."""
        tensors, meta = tensors_from_bytes(content, origin)
        kept = {name.removeprefix("kept/"): mask for name, mask in tensors.items() if name.startswith("kept/")}
        masks = all(mask.dtype == torch.bool and mask.ndim == 2 for mask in kept.values())
        if "base" not in meta or not kept or not masks or len({len(mask) for mask in kept.values()}) > 1:
            raise StaleArtifact(f"{origin} holds no modules; give a modules.safetensors that modularize left")
        state = {name.removeprefix("heads/"): value for name, value in tensors.items() if name.startswith("heads/")}
        heads: Heads | Scales | None = None
        if state:
            try:
                if not all(value.is_floating_point() for value in state.values()):
                    raise ValueError("heads of another type")
                if "scale" in state:
                    heads = Scales(len(state["scale"]))
                else:
                    heads = Heads(state["weight1"].shape[0], state["weight1"].shape[2], state["weight1"].shape[1])
                heads.load_state_dict(state)
                if len(next(heads.parameters())) != len(next(iter(kept.values()))):
                    raise ValueError("another number of heads than of modules")
            except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
                raise StaleArtifact(f"{origin} is damaged: its heads fit nothing; run modularize again") from error
        return Modules(meta["base"], kept, heads)

    def member(self, model: nn.Module, example: Tensor, label: int) -> ClassModule:
        """Return the module of class `label`, a smaller network that shares no parameters with the classifier.

        Args:
            model: The classifier that was split.
            example: A batch of pixels (N, 3, H, W) in [0, 1], to trace the network with.
            label: The index of the class.

        Raises:
            StaleArtifact: When another classifier was split.
        """
        model, layers = as_classifier(model), self.layers(model, example)
        device = device_of(model)
        small = extract(model.network, layers, [self.kept[layer.name][label].to(device) for layer in layers])
        head = self.heads.only(label) if self.heads else None
        return ClassModule(copy.deepcopy(model.normalize), small, label, head).to(device)

    def layers(self, model: nn.Module, example: Tensor) -> list[Layer]:
        """Return the layers of kernels of the classifier that was split; StaleArtifact where it is another one."""
        model = as_classifier(model)
        if state_digest(model.state_dict()) != self.base:
            raise StaleArtifact("the modules were made of other base weights; run modularize for these")
        layers = layers_to_split(model.network, model.normalize(example.to(device_of(model))))
        if {layer.name: layer.kernels for layer in layers} != {name: mask.shape[1] for name, mask in self.kept.items()}:
            raise StaleArtifact("the modules do not fit the network's layers; run modularize again")
        return layers

    def composed(self, model: nn.Module, example: Tensor) -> ComposedModules:
        """Return all modules as one classifier, which predicts the class of highest score (see `member`)."""
        return ComposedModules([self.member(model, example, label) for label in range(self.classes)])

    def dissimilarity(self) -> Tensor:
        """Return one minus the Jaccard index of the kernels of each pair of modules, (classes, classes)."""
        tied = [torch.full((mask.shape[1],), float(len(name.split("+")))) for name, mask in self.kept.items()]
        return dissimilarity(torch.cat(list(self.kept.values()), 1), torch.cat(tied))

    def shares(self) -> Tensor:
        """Return the share of kernels that each module keeps, in [0, 1], (classes,), counted in each convolution."""
        kept = sum(mask.sum(1) * len(name.split("+")) for name, mask in self.kept.items())
        total = sum(mask.shape[1] * len(name.split("+")) for name, mask in self.kept.items())
        assert isinstance(kept, Tensor)
        return kept / total


class ClassModule(nn.Module):
    """A module: normalisation, the smaller network, and its class's logit, scaled or not, or the score of its head."""

    def __init__(self, normalize: nn.Module, network: nn.Module, label: int, head: Heads | Scales | None) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network
        self.label = label
        self.head = head
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to scores (N,)."""
        logits: Tensor = self.network(self.normalize(pixels))
        if self.head is None:
            return logits[:, self.label]
        scores: Tensor = self.head(logits.unsqueeze(1))
        return scores.squeeze(1)


class ComposedModules(nn.Module):
    """All modules as one classifier: the class whose module gives the highest score."""

    def __init__(self, members: list[ClassModule]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def networks(self) -> list[nn.Module]:
        """Return the modules' networks, which read normalised images."""
        return [member.get_submodule("network") for member in self.members]

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to scores (N, classes)."""
        return torch.stack([member(pixels) for member in self.members], 1)


def as_classifier(model: nn.Module) -> Classifier:
    """Return a model as a `Classifier`: itself, or one without normalisation around it."""
    if isinstance(model, Classifier):
        return model
    return Classifier(model, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).to(device_of(model))
