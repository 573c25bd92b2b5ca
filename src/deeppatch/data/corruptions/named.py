"""Corruptions by name, by import path, and from callables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from deeppatch.data import corruption_names
from deeppatch.data.corruption_names import RESERVED, Specification
from deeppatch.data.corruptions.callables import CallableCorruption, imported, own_name
from deeppatch.data.corruptions.gaussion import GaussianBlur
from deeppatch.data.corruptions.kinds import CommonCorruption
from deeppatch.data.corruptions.own import CleanImages, UnpairedCorruption, own_folder
from deeppatch.data.corruptions.paired import PairedCorruption, released, released_images
from deeppatch.data.corruptions.protocol import Corruption, Degrade, Several
from deeppatch.data.corruptions.spatial import Spatial
from deeppatch.data.dataset import Data
from deeppatch.data.files import Files
from deeppatch.data.images import Images, to_float
from deeppatch.errors import UserError

IDENTIFYING_IMAGES = 64


def corruption(
    what: str | Degrade | Mapping[str, Degrade] | Corruption,
    *,
    seed: int = 2021,
    severity: str | None = None,
    hold_out: str | None = None,
    data: Data | None = None,
) -> Corruption:
    """Return a corruption: by name, or one level for a callable, or one level for each callable of a mapping.

    Args:
        what: Names, separated by commas: `gaussian-blur` (six levels, the published `gaussion`); any of the 19 common
            corruptions, such as `fog` or `jpeg_compression`, at five severities; a group of them, `noise`, `blur`,
            `weather`, `digital`, `extra`, or `all` (the first four groups); `spatial`; or the import path of a
            callable, `package.module:function`; `folder:PATH`, degraded images of one's own; or `released:PATH`, files
            of CIFAR-10-C, CIFAR-100-C or ImageNet-C. Or a callable of pixels, float (N, 3, H, W) in [0, 1], and a
            `torch.Generator` on their device, which returns pixels (N, 3, H, W) or (N, 1, H, W); or a mapping from the
            names of levels to such callables. A corruption is returned as it is.
        seed: The seed of the generators that callables receive; they should use no other random numbers.
        severity: The severities of common corruptions and of `spatial`, such as `1,3,5` or `2..4` (default: all five).
        hold_out: Names that are left out of `what`: train without them and measure with them, to see what a repair does
            to degradations that it has not seen.
        data: The clean data, which degraded images in files belong to.

    Returns:
        A `Corruption`: it has `len` levels without clean, whose names are `level_names`.

    Raises:
        UserError: When a name is unknown, an argument is not callable, or a level has the name of another column.

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
    >>> corruption("fog,jpeg_compression", severity="1,5").level_names
    ('fog-1', 'fog-5', 'jpeg_compression-1', 'jpeg_compression-5')
    >>> len(corruption("all")), len(corruption("all", hold_out="weather"))
    (75, 55)
    """
    if isinstance(what, str):
        specification = corruption_names.parse(what, severity)
        kept = specification.without(hold_out) if hold_out else specification

        def from_files(name: str) -> Corruption:
            if data is None:
                raise UserError(f"{name}: these images belong to clean ones; give the argument data")
            parts = {part: getattr(data, part) for part in ("train", "val", "test")}
            return read_files(name, kept, CleanImages(parts, data.classes, seed=seed))

        return create(kept, seed=seed, from_files=from_files)
    if severity is not None or hold_out is not None:
        raise UserError("severities and held-out types belong to corruptions by name, not to callables")
    if isinstance(what, Corruption) and not isinstance(what, Mapping):
        return what
    given = what if isinstance(what, Mapping) else {own_name(what): what}
    if not given or not all(map(callable, given.values())):
        raise UserError("a corruption is a name, a callable of (pixels, generator), or a mapping of names to callables")
    if reserved := RESERVED & given.keys():
        raise UserError(f"no level can be called {', '.join(sorted(reserved))}: tables have columns of this name")
    return CallableCorruption(given, seed)


def create(
    specification: Specification, *, seed: int = 2021, from_files: Callable[[str], Corruption] | None = None
) -> Corruption:
    """Return the corruption that a specification stands for.

    `seed` is that of the generators of callables; `from_files` reads `folder:PATH` and `released:PATH`.
    """
    members = [_member(name, specification, seed, from_files) for name in specification.names]
    if len(members) == 1:
        return members[0]
    levels = [name for member in members for name in member.level_names]
    if twice := sorted({name for name in levels if levels.count(name) > 1}):
        raise UserError(f"{specification.given}: two levels are called {', '.join(twice)}; rename one of them")
    return Several(members)


def read_files(name: str, specification: Specification, clean: CleanImages) -> Corruption:
    """Return the degradation that `folder:PATH` or `released:PATH` names."""
    kind, _, where = name.partition(":")
    path = Path(where).expanduser()
    if kind + ":" == corruption_names.FOLDER:
        return own_folder(path, clean)
    if not path.is_dir():
        raise UserError(f"{path} is no folder of released files; give that of CIFAR-10-C, CIFAR-100-C or ImageNet-C")
    test = clean.parts["test"] if clean.official is None else clean.official[1]
    if isinstance(test.pixels, Files):
        return released_images(path, test, specification.severities)
    return released(path, test, severities=specification.severities)


def _member(
    name: str, specification: Specification, seed: int, from_files: Callable[[str], Corruption] | None
) -> Corruption:
    if name == corruption_names.DEFAULT:
        return GaussianBlur(prefix="gaussion-" if len(specification.names) > 1 else "")
    if name == "spatial":
        return Spatial(specification.severities)
    if name in corruption_names.COMMON:
        return CommonCorruption(name, specification.severities)
    if corruption_names.is_function(name):
        found = imported(name)
        if not callable(found) and not isinstance(found, Mapping | Corruption):
            raise UserError(f"{name} is {type(found).__name__}; name a function of (pixels, generator)")
        return corruption(found, seed=seed)
    if from_files is None:
        raise UserError(f"{name}: these images belong to clean ones; use corruption(..., data=data)")
    return from_files(name)


def identity(corruption: Corruption, images: Images) -> str:
    """Return a string that identifies a corruption: the names of its levels, or a digest for one's own.

    The digest is a SHA-256 over the names of the levels and their results for the first 64 of `images`, rounded
    to 8 bits.
    """
    if isinstance(corruption, Several):
        return " ".join(identity(member, images) for member in corruption.members)
    if isinstance(corruption, (GaussianBlur, CommonCorruption, Spatial, PairedCorruption, UnpairedCorruption)):
        return " ".join(corruption.level_names)
    pixels = to_float(images.pixels[:IDENTIFYING_IMAGES])
    digest = hashlib.sha256()
    for level, name in enumerate(corruption.level_names, start=1):
        digest.update(name.encode() + b"\n")
        digest.update((corruption(pixels, level) * 255).round().to(torch.uint8).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
