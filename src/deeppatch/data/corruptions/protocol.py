"""What a corruption is: a degradation of whole batches at several levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from deeppatch.data.images import Images

# float pixels (N, 3, H, W) in [0, 1] and a generator on their device -> pixels (N, 3, H, W) or (N, 1, H, W)
Degrade = Callable[[Tensor, torch.Generator], Tensor]


@runtime_checkable
class Corruption(Protocol):
    """A degradation of images at several levels: 0 is clean, and level i has the name `level_names[i - 1]`.

    `draws` says whether the result for an image depends on the generator or on other images of its batch. If so, whole
    batches are degraded, even by processes that need only a part of them, unless the attribute `by_image` is there and
    true: then the result depends only on the image, its level, and the generator's initial seed.
    """

    draws: bool

    @property
    def level_names(self) -> tuple[str, ...]:
        """The names of levels 1, 2, ..., as tables and plots show them."""

    def __len__(self) -> int:
        """Return the number of levels without clean."""

    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Degrade float pixels (N, 3, H, W) in [0, 1] at `levels`, int64 (N,) or one for all."""


def depends_on_batch(corruption: Corruption | None) -> bool:
    """Tell whether a result for an image may depend on the batch that it is in."""
    return corruption is not None and corruption.draws and not getattr(corruption, "by_image", False)


def families(corruption: Corruption) -> tuple[int, ...]:
    """Return the number of levels of each type, in order; training draws types with equal probability."""
    return tuple(getattr(corruption, "families", (len(corruption),)))


def looks_up(corruption: Corruption | None) -> bool:
    """Tell whether degraded versions are looked up by the clean pixels, which must be neither cropped nor mirrored."""
    return bool(getattr(corruption, "looks_up", False))


def is_paired(corruption: Corruption) -> bool:
    """Tell whether a degraded image shows what the clean one shows that it replaces."""
    return bool(getattr(corruption, "paired", True))


def is_for_test_only(corruption: Corruption) -> bool:
    """Tell whether some level has degraded versions of test images only."""
    return bool(getattr(corruption, "test_only", False))


def own_images(corruption: Corruption | None, level: int, images: Images) -> Images | None:
    """Return the images that stand for a level of `images` where they are others than its degraded versions."""
    find = getattr(corruption, "own_images", None)
    found: Images | None = find(level, images) if find and level else None
    return found


class Several:
    """Several corruptions as one: the levels of the first, then those of the second, and so on."""

    def __init__(self, members: Sequence[Corruption]) -> None:
        self.members = tuple(members)
        self.draws = any(member.draws for member in self.members)
        self.by_image = not any(map(depends_on_batch, self.members))
        self.looks_up = any(map(looks_up, self.members))
        self.paired = all(map(is_paired, self.members))
        self.test_only = any(map(is_for_test_only, self.members))
        self.families = tuple(size for member in self.members for size in families(member))

    def __len__(self) -> int:
        return sum(map(len, self.members))

    @property
    def level_names(self) -> tuple[str, ...]:
        """The names of the levels of all members, in order."""
        return tuple(name for member in self.members for name in member.level_names)

    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Degrade float pixels (N, 3, H, W) in [0, 1] at `levels`, an int64 tensor (N,) or one level for all."""
        first = 0
        if isinstance(levels, int):
            for member in self.members:
                if first < levels <= first + len(member):
                    return member(pixels, levels - first, generator)
                first += len(member)
            return pixels
        degraded = pixels.clone()
        for member in self.members:
            own = ((levels > first) & (levels <= first + len(member))).nonzero().squeeze(1)
            if len(own):
                degraded[own] = member(pixels[own], levels[own] - first, generator)
            first += len(member)
        return degraded

    def own_images(self, level: int, images: Images) -> Images | None:
        """Return the images that stand for a level where the member that has it brings its own."""
        for member in self.members:
            if level <= len(member):
                return own_images(member, level, images)
            level -= len(member)
        return None
