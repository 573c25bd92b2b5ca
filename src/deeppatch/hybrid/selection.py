"""The selection of images of a pool: which are labelled, which get a propagated label, and which are unlabelled."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.hybrid.oracle import whole_labels

UNKNOWN = -1


@dataclass(frozen=True)
class Selection:
    """Images of the pool, named by their indices in it (int64).

    Args:
        bought: The images whose labels are bought, in the order in which they were chosen, (B,).
        labels: Their classes (B,), UNKNOWN until they are given.
        members: The images that are trained with a label, bought or propagated, (M,).
        lender: For each member, the image whose label it has, as an index in `bought`, (M,).
        unlabelled: The images that semi-supervised training reads, (U,); members among them keep their labels.
        weights: How likely each of these is to be drawn, float32 (U,).
        facts: How they were chosen: `method`, `tau`, and `weighted`: whether weights are updated during training and
            all members are drawn as well.

    >>> selection = supervised(torch.tensor([7, 2]), torch.tensor([UNKNOWN, UNKNOWN]))
    >>> labelled = selection.with_labels(torch.tensor([1, 0]))
    >>> labelled.bought.tolist(), labelled.member_labels.tolist()
    ([7, 2], [1, 0])
    """

    bought: Tensor
    labels: Tensor
    members: Tensor
    lender: Tensor
    unlabelled: Tensor
    weights: Tensor
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def member_labels(self) -> Tensor:
        """The labels (M,) of the members."""
        return self.labels[self.lender]

    def with_labels(self, labels: Tensor) -> Selection:
        """Return the selection with labels, int64 (B,), for `bought` in that order; UserError when they are invalid."""
        labels = whole_labels(labels, self.bought)
        if bool((labels < 0).any()):
            raise UserError(f"give one label, 0 or more, for each of the {len(self.bought)} images that are bought")
        return replace(self, labels=labels)

    def with_answers(self, labels: Tensor) -> Selection:
        """Return the selection with a person's labels, int64 (B,), for `bought`; what has UNKNOWN was passed over.

        Such images are left out, also of the unlabelled ones, and no member is left that would have one of their
        labels.

        >>> selection = semi_supervised(torch.tensor([7, 2]), torch.tensor([UNKNOWN, UNKNOWN]), torch.tensor([2, 5]))
        >>> answered = selection.with_answers(torch.tensor([1, UNKNOWN]))
        >>> answered.bought.tolist(), answered.labels.tolist(), answered.unlabelled.tolist()
        ([7], [1], [5])
        """
        labels = whole_labels(labels, self.bought)
        kept = labels != UNKNOWN
        held, drawn = kept[self.lender], ~torch.isin(self.unlabelled, self.bought[~kept])
        answered = replace(
            self,
            bought=self.bought[kept],
            members=self.members[held],
            lender=(kept.cumsum(0) - 1)[self.lender[held]],
            unlabelled=self.unlabelled[drawn],
            weights=self.weights[drawn],
        )
        return answered.with_labels(labels[kept])

    def moved(self, places: Tensor) -> Selection:
        """Return the selection of the same images in a pool that has changed.

        `places` int64 (N,) has the index that each image of the old pool has in the new one, UNKNOWN where it is gone.
        Such images are left out, and members that would have one of their labels.

        >>> selection = semi_supervised(torch.tensor([2, 0]), torch.tensor([4, 5]), torch.tensor([1, 3]))
        >>> moved = selection.moved(torch.tensor([UNKNOWN, 0, 1, 5]))
        >>> moved.bought.tolist(), moved.labels.tolist(), moved.members.tolist(), moved.unlabelled.tolist()
        ([1], [4], [1], [0, 5])
        """
        places = places.to(self.bought)
        found, members, unlabelled = (places[each] for each in (self.bought, self.members, self.unlabelled))
        kept = found != UNKNOWN
        held, drawn = kept[self.lender] & (members != UNKNOWN), unlabelled != UNKNOWN
        return replace(
            self,
            bought=found[kept],
            labels=self.labels[kept],
            members=members[held],
            lender=(kept.cumsum(0) - 1)[self.lender[held]],
            unlabelled=unlabelled[drawn],
            weights=self.weights[drawn],
        )

    def counts(self, use: str = "both") -> dict[str, int]:
        """Return the numbers of images that a repair reads when it uses one of USES.

        These are the distinct images whose labels are bought, the images that are trained with a label, bought or
        propagated, and the images that are trained without.
        """
        known = self.labels != UNKNOWN
        return {
            "labels_bought": len(self.bought[known].unique()) if use != "unlabelled" else 0,
            "labelled_images": int(known[self.lender].sum()) if use != "unlabelled" else 0,
            "unlabelled_images": len(self.unlabelled) if use != "labels" else 0,
        }

    def chosen_from(self, pool_pixels: Tensor) -> Selection:
        """Return the selection with a digest of the pool, uint8 (N, 3, H, W), by which `check` knows it again."""
        return replace(self, facts={**self.facts, "pixels": state_digest({"pixels": pool_pixels})})

    def check(self, pool_pixels: Tensor, classes: int) -> None:
        """Raise UserError unless labels are of `classes` classes, and images of this pool, uint8 (N, 3, H, W)."""
        labels = self.labels[self.labels != UNKNOWN]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise UserError(
                f"labels reach from {int(labels.min())} to {int(labels.max())}, classes from 0 to {classes - 1}"
            )
        named = torch.cat([self.bought, self.members, self.unlabelled])
        if len(named) and not 0 <= int(named.min()) <= int(named.max()) < len(pool_pixels):
            raise UserError(
                f"the selection names images {int(named.min())} to {int(named.max())} of a pool of {len(pool_pixels)}; "
                "give the right pool"
            )
        if self.facts.get("pixels") not in (None, state_digest({"pixels": pool_pixels})):
            raise UserError(
                "the selection is of another pool: its images are others, or in another order; give the pool that it "
                "was chosen from"
            )

    def to_bytes(self, **facts: Any) -> bytes:
        """Serialise as safetensors, with `facts` as further metadata."""
        names = ("bought", "labels", "members", "lender", "unlabelled", "weights")
        return tensors_to_bytes({name: getattr(self, name) for name in names}, {**self.facts, **facts})


def selection_from_bytes(content: bytes, origin: Path) -> Selection:
    """Return the selection that `Selection.to_bytes` has serialised; StaleArtifact when it is damaged."""
    tensors, facts = tensors_from_bytes(content, origin)
    wanted = {name: torch.int64 for name in ("bought", "labels", "members", "lender", "unlabelled")}
    types = {name: value.dtype for name, value in tensors.items() if value.ndim == 1}
    if types != wanted | {"weights": torch.float32} or types.keys() != tensors.keys():
        raise StaleArtifact(f"{origin} is not a selection; give a selection.safetensors that annotate left")
    found = Selection(**tensors, facts=facts)
    pairs = ((found.bought, found.labels), (found.members, found.lender), (found.unlabelled, found.weights))
    lent = not len(found.lender) or 0 <= int(found.lender.min()) <= int(found.lender.max()) < len(found.bought)
    if not lent or any(len(one) != len(other) for one, other in pairs):
        raise StaleArtifact(f"{origin} is damaged: its lists do not fit each other; run annotate again")
    return found


def supervised(bought: Tensor, labels: Tensor) -> Selection:
    """Return a selection of bought images only."""
    return semi_supervised(bought, labels, bought.new_empty(0))


def semi_supervised(bought: Tensor, labels: Tensor, unlabelled: Tensor) -> Selection:
    """Return a selection of bought images, without propagation, and unlabelled ones of equal weight."""
    indices = torch.arange(len(bought), device=bought.device)
    weights = torch.ones(len(unlabelled), device=bought.device)
    return Selection(bought, labels, bought.clone(), indices, unlabelled, weights, {"weighted": False, "tau": None})
