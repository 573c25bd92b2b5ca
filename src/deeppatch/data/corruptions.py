"""Degradations of whole batches: Gaussian blur at several levels, and any callable that degrades pixels."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from deeppatch import runtime
from deeppatch.data import names
from deeppatch.data.images import Images, to_float
from deeppatch.errors import UserError

SIGMAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
NOISES: dict[str, tuple[float, ...]] = {"gaussion": SIGMAS}
IDENTIFYING_IMAGES = 64
RESERVED = {"clean", "mean", "mixed", "append", "repair", "break"}  # columns of tables beside those of levels
# float pixels (N, 3, H, W) in [0, 1] and a generator on their device -> pixels (N, 3, H, W) or (N, 1, H, W)
Degrade = Callable[[Tensor, torch.Generator], Tensor]


def kernel_size(sigma: float) -> int:
    """Return the odd width of the blur kernel in pixels: 3, 5, 7, 9, 11, 13 for the six published levels."""
    return 2 * (math.ceil(4 * sigma) // 2) + 1


@runtime_checkable
class Corruption(Protocol):
    """A degradation of images at several levels: 0 is clean, and level i has the name `level_names[i - 1]`.

    `draws` says whether the result for an image depends on the generator or on other images of its batch. If so, whole
    batches are degraded, even by processes that need only a part of them.
    """

    draws: bool

    @property
    def level_names(self) -> tuple[str, ...]:
        """The names of levels 1, 2, ..., as tables and plots show them."""

    def __len__(self) -> int:
        """Return the number of levels without clean."""

    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Degrade float pixels (N, 3, H, W) in [0, 1] at `levels`, int64 (N,) or one for all."""


class Blur:
    """Gaussian blur of a batch with a level for each image: 0 is clean, i is `sigmas[i - 1]` (in pixels).

    Blurring is linear and separable, so each level has one matrix B per axis, and a blurred image is B X B'; a batch of
    mixed levels is two batched matrix products. The matrices are torchvision's gaussian_blur (reflect padding)
    applied to the unit vectors, so the result equals torchvision's up to rounding.
    """

    draws = False

    def __init__(self, sigmas: Sequence[float], height: int, width: int, device: torch.device) -> None:
        self.sigmas = tuple(sigmas)
        widest = max(map(kernel_size, self.sigmas))
        if min(height, width) <= widest // 2:
            raise UserError(
                f"images of {height}x{width} pixels are too small for a blur whose kernel is {widest} pixels wide; "
                f"use images of at least {widest // 2 + 1} pixels on either side"
            )
        self._rows = self._matrices(height).to(device)
        self._columns = self._matrices(width).to(device)

    def _matrices(self, size: int) -> Tensor:
        units = torch.eye(size).unsqueeze(0)
        # a kernel one pixel wide does not blur the other axis, so column j of the result is the blurred unit vector j
        blurred = [gaussian_blur(units, [1, kernel_size(s)], [s, s])[0] for s in self.sigmas]
        return torch.stack([units[0], *blurred])

    def __len__(self) -> int:
        return len(self.sigmas)

    @property
    def level_names(self) -> tuple[str, ...]:
        """The standard deviations: s=0.5 and so on."""
        return tuple(f"s={sigma:g}" for sigma in self.sigmas)

    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Blur float pixels (N, C, H, W) in [0, 1] at `levels`, an int64 tensor (N,) or one level for all."""
        if isinstance(levels, int):
            if levels == 0:
                return pixels
            return self._rows[levels] @ pixels @ self._columns[levels].T
        rows, columns = self._rows[levels].unsqueeze(1), self._columns[levels].unsqueeze(1)
        blurred = rows @ pixels @ columns.transpose(2, 3)
        return torch.where((levels == 0).view(-1, 1, 1, 1), pixels, blurred)


class GaussianBlur:
    """`Blur` for any image size and device; its matrices are created when a size is first used."""

    draws = False

    def __init__(self, sigmas: Sequence[float] = SIGMAS) -> None:
        self.sigmas = tuple(sigmas)
        self._blurs: dict[tuple[int, int, torch.device], Blur] = {}

    def __len__(self) -> int:
        return len(self.sigmas)

    @property
    def level_names(self) -> tuple[str, ...]:
        """The standard deviations: s=0.5 and so on."""
        return tuple(f"s={sigma:g}" for sigma in self.sigmas)

    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Blur float pixels (N, C, H, W) in [0, 1] at `levels`, an int64 tensor (N,) or one level for all."""
        size = (*pixels.shape[-2:], pixels.device)
        if size not in self._blurs:
            self._blurs[size] = Blur(self.sigmas, *size)
        return self._blurs[size](pixels, levels)


class CallableCorruption:
    """A corruption given by callables, one for each level, in the order of `callables`.

    A callable receives all images of a batch at its level, float (N, 3, H, W) in [0, 1], and a generator on their
    device, whose random numbers depend only on `seed`, on the name of the level and on the batch. Its result is
    checked, a single channel is repeated to three, and values are clamped to [0, 1].
    """

    draws = True

    def __init__(self, callables: Mapping[str, Degrade], seed: int = 2021) -> None:
        self.callables = {
            name: copy.deepcopy(each).eval() if isinstance(each, nn.Module) else each
            for name, each in callables.items()
        }
        self.seed = seed

    def __len__(self) -> int:
        return len(self.callables)

    @property
    def level_names(self) -> tuple[str, ...]:
        """The names of the callables."""
        return tuple(self.callables)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, levels: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """Degrade float pixels (N, 3, H, W) in [0, 1] at `levels`, an int64 tensor (N,) or one level for all.

        `generator` identifies the batch: random numbers depend on its initial seed, not on its state.
        """
        batch = 0 if generator is None else generator.initial_seed()
        if isinstance(levels, int):
            return self._degrade(pixels.clone(), levels, batch) if levels else pixels
        degraded = pixels.clone()
        for level in range(1, len(self) + 1):
            chosen = (levels == level).nonzero().squeeze(1)
            if len(chosen):
                degraded[chosen] = self._degrade(pixels[chosen], level, batch)
        return degraded

    def _degrade(self, pixels: Tensor, level: int, batch: int) -> Tensor:
        name, degrade = list(self.callables.items())[level - 1]
        own = runtime.generator(self.seed, "corrupt", name, batch, device=pixels.device)
        return check_result(degrade(pixels.clone(), own), pixels, name)


def check_result(result: object, given: Tensor, name: str) -> Tensor:
    """Check the result of the callable `name` for pixels `given`, and return float pixels (N, 3, H, W) in [0, 1].

    Raises:
        UserError: When it is not a tensor, or has another shape, or has values that are not finite.
    """
    requirement = f"the corruption {name} must return pixels {tuple(given.shape)} in [0, 1]"
    if not isinstance(result, Tensor):
        raise UserError(f"{requirement}; it returned {type(result).__name__}")
    one_channel = (len(given), 1, *given.shape[2:])
    if result.shape not in (given.shape, one_channel):
        raise UserError(f"{requirement}; it returned {tuple(result.shape)}")
    pixels = (result if result.dtype == torch.bool else to_float(result)).to(given.device, torch.float32)
    if not pixels.isfinite().all():
        raise UserError(f"{requirement}; it returned values that are not finite")
    return pixels.clamp(0, 1).expand(given.shape)


def corruption(what: str | Degrade | Mapping[str, Degrade] | Corruption, *, seed: int = 2021) -> Corruption:
    """Return a corruption: a named one, one level for a callable, or one level for each callable of a mapping.

    Args:
        what: `gaussian-blur` (six levels); or a callable of pixels, float (N, 3, H, W) in [0, 1], and a
            `torch.Generator` on their device, which returns pixels (N, 3, H, W) or (N, 1, H, W); or a mapping from
            the names of levels to such callables. A corruption is returned as it is.
        seed: The seed of the generators that callables receive; they should use no other random numbers.

    Returns:
        A `Corruption`: it has `len` levels without clean, whose names are `level_names`.

    Raises:
        UserError: When the name is unknown, an argument is not callable, or a level has the name of another column.

    >>> import torch
    >>> def noise(pixels, generator):
    ...     return pixels + 0.1 * torch.randn(pixels.shape, generator=generator, device=pixels.device)
    >>> corruption(noise).level_names
    ('noise',)
    >>> both = corruption({"noise": noise, "dark": lambda pixels, generator: pixels / 2})
    >>> both(torch.ones(1, 3, 4, 4), 2).mean().item()
    0.5
    >>> corruption("gaussian-blur").level_names
    ('s=0.5', 's=1', 's=1.5', 's=2', 's=2.5', 's=3')
    """
    if isinstance(what, str):
        name = names.NOISES.get(what, what)
        if name not in NOISES:
            raise UserError(f"there is no corruption called {what}; choose from {', '.join((*NOISES, *names.NOISES))}")
        return GaussianBlur(NOISES[name])
    if isinstance(what, Corruption) and not isinstance(what, Mapping):
        return what
    given = what if isinstance(what, Mapping) else {_name(what): what}
    if not given or not all(map(callable, given.values())):
        raise UserError("a corruption is a name, a callable of (pixels, generator), or a mapping of names to callables")
    if reserved := RESERVED & given.keys():
        raise UserError(f"no level can be called {', '.join(sorted(reserved))}: tables have columns of this name")
    return CallableCorruption(given, seed)


def _name(degrade: object) -> str:
    name = getattr(degrade, "__name__", type(degrade).__name__)
    return "corrupted" if name in ("<lambda>", "partial") else name


def identity(corruption: Corruption, images: Images) -> str:
    """Return a string that identifies a corruption: the names of its levels, or for callables a digest.

    The digest is a SHA-256 over the names of the levels and their results for the first 64 of `images`, rounded
    to 8 bits.
    """
    if not isinstance(corruption, CallableCorruption):
        return " ".join(corruption.level_names)
    pixels = to_float(images.pixels[:IDENTIFYING_IMAGES])
    digest = hashlib.sha256()
    for level, name in enumerate(corruption.level_names, start=1):
        digest.update(name.encode() + b"\n")
        digest.update((corruption(pixels, level) * 255).round().to(torch.uint8).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
