"""Split a network into a module of few kernels for each class: analyse it, then search."""

from __future__ import annotations

import torch
from torch import nn

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.data.dataset import Data
from deeppatch.errors import UserError
from deeppatch.modular.analysis import Analysis, analyse
from deeppatch.modular.genetic_search import GeneticSearch
from deeppatch.modular.gradient_search import GradientSearch
from deeppatch.modular.modules import Modules
from deeppatch.zoo.classifier import device_of

METHODS: dict[str, type[GradientSearch | GeneticSearch]] = {"grad": GradientSearch, "ga": GeneticSearch}
Method = str | GradientSearch | GeneticSearch


def split_into_modules(
    model: nn.Module,
    data: Data,
    *,
    method: Method = "grad",
    sensitivity_images: int = 1000,
    importance: str | None = None,
    amp: bool = False,
    seed: int = 2021,
    checkpoint: Checkpoint | None = None,
) -> Modules:
    """Split a network into a module of few kernels for each class (Qi et al., ASE 2022; TOSEM 2023).

    Args:
        model: A sequential or residual classifier of pixels (N, 3, H, W) in [0, 1] that returns logits (N, classes);
            it is not changed.
        data: The gradient search learns from train and chooses its epoch on val; the genetic search reads one half of
            val, and chooses its generation on the other. test is not read.
        method: "grad" (GradSplitter) or "ga" (CNNSplitter) with their default settings, or a `GradientSearch` or
            `GeneticSearch` with other settings.
        sensitivity_images: The number of val images on which the sensitivity of layers is measured.
        importance: Where the response of kernels to classes is read: "pooled", where the next layer reads it;
            "unpooled", before max pooling; or "random", a control that reads nothing. None is the place of the method:
            "pooled" for "grad"; for "ga" that of its preset, "unpooled" but for ResCNN's, as published.
        amp: Whether the gradient search trains in bfloat16.
        seed: The seed of all random choices.
        checkpoint: Where the search is saved after every epoch or generation, and resumed from.

    Returns:
        The modules; their `history` has a row for each epoch or generation.

    Raises:
        UserError: When the network mixes channels in a way that cannot be split, or there is no such method.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from deeppatch.data.dataset import Data
        >>> from deeppatch.data.images import Images
        >>> from deeppatch.modular.gradient_search import GradientSearch
        >>> images = Images(torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8), torch.arange(12) % 2)
        >>> data = Data(images, images, images, ("cat", "dog"))
        >>> network = nn.Sequential(
        ...     nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
        >>> modules = split_into_modules(network, data, method=GradientSearch(epochs=2, head=False))
        >>> modules.kept["0"].shape  # which of 6 kernels each of 2 modules keeps
        torch.Size([2, 6])
        >>> modules.composed(network, data.example)(data.example).shape  # all modules as one classifier
        torch.Size([2, 2])
    """
    method = _settings(method)
    analysis = analyse(model, data, images=sensitivity_images, importance=importance or method.importance, seed=seed)
    with torch.random.fork_rng(devices=[]):  # heads are drawn on the CPU
        torch.random.default_generator.manual_seed(seed)
        return search(analysis, data, method, amp=amp, seed=seed, checkpoint=checkpoint)


def search(
    analysis: Analysis,
    data: Data,
    method: Method = "grad",
    *,
    amp: bool = False,
    seed: int = 2021,
    checkpoint: Checkpoint | None = None,
) -> Modules:
    """Search the modules of an analysed classifier; see `split_into_modules`."""
    settings = _settings(method)
    data = data.to(device_of(analysis.model))
    result = settings.run(analysis, data, amp=amp, seed=seed, checkpoint=checkpoint)
    kept = {layer.name: mask.bool().cpu() for layer, mask in zip(analysis.layers, result.masks, strict=True)}
    return Modules(state_digest(analysis.model.state_dict()), kept, result.heads, result.history)


def _settings(method: Method) -> GradientSearch | GeneticSearch:
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise UserError(f"{method}: there is no such method; choose from {', '.join(METHODS)}")
    return METHODS[method]()
