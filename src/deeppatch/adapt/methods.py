"""The methods of test-time adaptation, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deeppatch.adapt.adapter import Adapter
from deeppatch.adapt.batch_statistics import (
    BatchStatistics,
    BatchStatisticsSettings,
    BnAlpha,
    BnAlphaSettings,
    BnPrior,
    BnPriorSettings,
)
from deeppatch.adapt.cotta import Cotta, CottaSettings
from deeppatch.adapt.eata import Eata, EataSettings, Eta
from deeppatch.adapt.lame import Lame, LameKnn, LameSettings
from deeppatch.adapt.roid import Roid, RoidSettings
from deeppatch.adapt.sar import Sar, SarSettings
from deeppatch.adapt.source import Source, SourceSettings
from deeppatch.adapt.tent import Tent, TentSettings
from deeppatch.errors import UserError, closest


@dataclass(frozen=True)
class Method:
    """How an adapter is made: its class, its settings, and whether it reads source images or draws random numbers."""

    build: Callable[..., Adapter]
    settings: type
    reads_source: bool = False
    draws: bool = False


METHODS: dict[str, Method] = {
    "source": Method(Source, SourceSettings),
    "bn-1": Method(BatchStatistics, BatchStatisticsSettings),
    "bn-alpha": Method(BnAlpha, BnAlphaSettings),
    "bn-prior": Method(BnPrior, BnPriorSettings),
    "tent": Method(Tent, TentSettings),
    "eta": Method(Eta, EataSettings),
    "eata": Method(Eata, EataSettings, reads_source=True),
    "sar": Method(Sar, SarSettings),
    "cotta": Method(Cotta, CottaSettings, draws=True),
    "lame": Method(Lame, LameSettings),
    "lame-knn": Method(LameKnn, LameSettings),
    "roid": Method(Roid, RoidSettings, draws=True),
}


def adapter(
    name: str, model: nn.Module, settings: Any = None, *, source: Tensor | None = None, seed: int = 2021
) -> Adapter:
    """Return a copy of a classifier that adapts to the images that it classifies.

    Args:
        name: The method: one of `deeppatch.adapt.names.METHODS`.
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        settings: The settings, an object of the method's own class (default: the published ones for CIFAR-10-C).
        source: Source images without labels, (N, 3, H, W), which only `eata` reads.
        seed: The seed of augmentations.

    Returns:
        An object with `predict(pixels)`, which returns logits and adapts, and `reset()`.

    Raises:
        UserError: When there is no such method, the settings are those of another one, or the network lacks what the
            method needs, such as batch normalisations.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> tent = adapter("tent", model)
    >>> tuple(tent.predict(torch.rand(5, 3, 8, 8)).shape), tent.passes.train
    ((5, 4), 5)
    """
    if name not in METHODS:
        raise UserError(
            f"there is no adaptation called {name}{closest(name, METHODS)}; choose from {', '.join(METHODS)}"
        )
    method = METHODS[name]
    if settings is not None and not isinstance(settings, method.settings):
        raise UserError(f"{name}: the settings are a {type(settings).__name__}; give a {method.settings.__name__}")
    known: dict[str, Any] = {"seed": seed} if method.draws else {}
    if method.reads_source:
        known["source"] = source
    return method.build(model, settings, **known)
