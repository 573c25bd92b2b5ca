"""The modules of a network as a small file: which kernels each class keeps, and the heads, if there are any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.errors import StaleArtifact
from deeppatch.modular.extract import extract
from deeppatch.modular.heads import Heads
from deeppatch.modular.layers import find
from deeppatch.zoo.classifier import Classifier


@dataclass(frozen=True)
class Modules:
    """One module for each class of a classifier, whose digest is `base` (Qi et al., ASE 2022; TOSEM 2023).

    `kept` has for each layer of kernels, by its convolutions' names joined by +, which the modules keep: bool
    (classes, kernels).
    """

    base: str
    kept: dict[str, Tensor]
    heads: Heads | None = None

    @property
    def classes(self) -> int:
        """How many modules there are."""
        return len(next(iter(self.kept.values())))

    @property
    def bounded(self) -> bool:
        """Whether scores lie in (0, 1), because heads make them; else they are logits."""
        return self.heads is not None

    def to_bytes(self) -> bytes:
        """Serialise as safetensors."""
        heads = self.heads.state_dict() if self.heads else {}
        tensors = {f"kept/{name}": mask for name, mask in self.kept.items()}
        return tensors_to_bytes({**tensors, **{f"heads/{k}": v for k, v in heads.items()}}, {"base": self.base})

    @staticmethod
    def from_bytes(content: bytes, origin: Path) -> Modules:
        """Read what `to_bytes` made; StaleArtifact when the file is damaged or holds no modules."""
        tensors, meta = tensors_from_bytes(content, origin)
        kept = {name.removeprefix("kept/"): mask for name, mask in tensors.items() if name.startswith("kept/")}
        if "base" not in meta or not kept or any(mask.dtype != torch.bool for mask in kept.values()):
            raise StaleArtifact(f"{origin} holds no modules; give a modules.safetensors that modularize left")
        state = {name.removeprefix("heads/"): value for name, value in tensors.items() if name.startswith("heads/")}
        heads = None
        if state:
            try:
                heads = Heads(state["weight1"].shape[0], state["weight1"].shape[2], state["weight1"].shape[1])
                heads.load_state_dict(state)
            except (KeyError, IndexError, RuntimeError) as error:
                raise StaleArtifact(f"{origin} is damaged: its heads fit nothing; run modularize again") from error
        return Modules(meta["base"], kept, heads)

    def member(self, model: Classifier, example: Tensor, number: int) -> Member:
        """Return the module of class `number`, a smaller network; `example` is a batch of pixels (N, 3, H, W).

        StaleArtifact when the classifier is not the one that was split.
        """
        if state_digest(model.state_dict()) != self.base:
            raise StaleArtifact("the modules were made of other base weights; run modularize for these")
        layers = find(model.network, model.normalize(example))
        if {layer.name: layer.kernels for layer in layers} != {name: mask.shape[1] for name, mask in self.kept.items()}:
            raise StaleArtifact("the modules do not fit the network's layers; run modularize again")
        kept = [self.kept[layer.name][number].to(example.device) for layer in layers]
        small = extract(model.network, layers, kept)
        return Member(model.normalize, small, number, self.heads.only(number) if self.heads else None)

    def composed(self, model: Classifier, example: Tensor) -> Composed:
        """Return all modules as one classifier."""
        return Composed([self.member(model, example, number) for number in range(self.classes)])

    def shares(self) -> Tensor:
        """Return the share of kernels that each module keeps, in [0, 1], (classes,); tied convolutions count each."""
        kept = sum(mask.sum(1) * len(name.split("+")) for name, mask in self.kept.items())
        total = sum(mask.shape[1] * len(name.split("+")) for name, mask in self.kept.items())
        assert isinstance(kept, Tensor)
        return kept / total


class Member(nn.Module):
    """A module: normalisation, the smaller network, and the logit of its class or its head's answer."""

    def __init__(self, normalize: nn.Module, network: nn.Module, number: int, head: Heads | None) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network
        self.number = number
        self.head = head
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to scores (N,)."""
        logits: Tensor = self.network(self.normalize(pixels))
        if self.head is None:
            return logits[:, self.number]
        scores: Tensor = self.head(logits.unsqueeze(1))
        return scores.squeeze(1)


class Composed(nn.Module):
    """All modules as one classifier: the class whose module answers highest."""

    def __init__(self, members: list[Member]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def networks(self) -> list[nn.Module]:
        """Return the modules' networks, which read normalised images."""
        return [member.get_submodule("network") for member in self.members]

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to scores (N, classes)."""
        return torch.stack([member(pixels) for member in self.members], 1)
