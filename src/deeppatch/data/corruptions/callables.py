"""Corruptions that are given as callables, one for each level, in memory or by import path."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.data.corruptions.protocol import Degrade
from deeppatch.data.images import to_float
from deeppatch.errors import UserError, closest


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
        try:
            degraded = degrade(pixels.clone(), own)
        except torch.OutOfMemoryError:
            raise
        except (Exception, SystemExit) as error:  # whatever the callable raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"the corruption {name} fails on pixels {tuple(pixels.shape)} and a torch.Generator: {reason}"
            ) from error
        return check_result(degraded, pixels, name)


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


def imported(path: str) -> object:
    """Import what `package.module:function` names, from the working directory or from what is installed.

    Raises:
        UserError: When the module cannot be imported, or does not have the name.
    """
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module itself raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: {module_name} cannot be imported from {here}: {reason}") from error
    finally:
        if added:
            sys.path.remove(here)
    found = getattr(module, name, None)
    if found is None:
        raise UserError(f"{path}: {module_name} has nothing called {name}{closest(name, vars(module))}")
    return found


def own_name(degrade: object) -> str:
    """Return the name of a callable as its level is called."""
    name = getattr(degrade, "__name__", type(degrade).__name__)
    return "corrupted" if name in ("<lambda>", "partial") else name
