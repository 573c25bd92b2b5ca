"""Make a bank of normalisation statistics: estimate those of each condition, and fit the selector."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.artifacts import state_digest
from deeppatch.data import corruptions, views
from deeppatch.data.corruptions import Corruption, families
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import Passes
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.evaluation import check_classifier, correct_by_level
from deeppatch.graph.statistics import batch_norms, reestimate
from deeppatch.progress import info, track
from deeppatch.retrain.bank import Bank, tables
from deeppatch.retrain.names import CONDITIONS
from deeppatch.retrain.norms import BATCH, statistics_view
from deeppatch.retrain.selector import fit_selector, rings
from deeppatch.zoo.classifier import device_of


def fit_bank(
    model: nn.Module,
    data: Data,
    corruption: Any,
    *,
    conditions: str = "level",
    max_clean_drop: float = 0.1,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
) -> Bank:
    """Estimate the normalisation statistics of each condition, and fit the selector that tells conditions apart.

    Nothing is trained by gradients: statistics come from one pass over images of `train` for each condition, and a
    logistic regression on the energy of spatial frequencies selects the condition of an image, as FROST selects that of
    a corruption (Camuffo et al., ICASSP 2024, arXiv 2403.14335). Clean images keep the model's own statistics, and a
    threshold bounds the loss of clean accuracy, as that of a router does.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1] with batch normalisations; it is not changed.
        data: The data; `train` gives the statistics, `val` fits the selector.
        corruption: The degradation: what `deeppatch.corruption` takes or returns.
        conditions: `level` for statistics of each level, `type` for those of each type of degradation, over its levels.
        max_clean_drop: The bound on the loss of clean accuracy, in percentage points, that val shows with 95 %
            confidence (Clopper and Pearson).
        batch_size: The number of images at a time.
        amp: Whether networks run in bfloat16.
        seed: The seed of the images that statistics are estimated on.

    Returns:
        The bank; `apply` makes a classifier of it. Its `facts` have the bound and the images that were lost on val, in
        percent how often the selector is right about them (`selected_correctly_percent`), and `passes`.

    Raises:
        UserError: When the model has no batch normalisation, a name or bound is wrong, or the model does not fit.

    Example:
        >>> from deeppatch.data.corruptions import GaussianBlur
        >>> images = Images(torch.randint(0, 256, (20, 3, 12, 16), dtype=torch.uint8), torch.arange(20) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> network = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
        >>> bank = fit_bank(nn.Sequential(*network), data, GaussianBlur((1.0, 2.0)))
        >>> bank.conditions, bank.tensors["scale"].shape, bank.facts["passes"]
        (('clean', 's=1', 's=2'), torch.Size([3, 4]), Passes(train=0, forward=100))
    """
    if conditions not in CONDITIONS:
        raise UserError(f"conditions {conditions!r}: choose from {', '.join(CONDITIONS)}")
    if not 0 <= max_clean_drop <= 100:
        raise UserError(f"max_clean_drop={max_clean_drop}: give percentage points from 0 to 100")
    data, degrade = data.to(device_of(model)), corruptions.corruption(corruption, seed=seed)
    check_classifier(model, data.example, len(data.classes))
    names, ranges = _conditions(degrade, conditions)
    networks, counted, broken = [model], 0, []
    before = correct_by_level(model, data.val, None, batch_size=batch_size, amp=amp)[0]
    for name, (first, count) in zip(names, ranges, strict=True):
        view = statistics_view(_levels_of(data.train, degrade, first, count, seed), seed)
        networks.append(reestimate(model, view, amp=amp))
        counted += len(view.index) + len(data.val)
        after = correct_by_level(networks[-1], data.val, None, batch_size=batch_size, amp=amp, label=name)[0]
        broken.append(before & ~after)
    features, condition, image = _features(data.val, degrade, ranges, batch_size)
    wrong = torch.stack([torch.zeros_like(before), *broken], 1).cpu().numpy()
    selector, facts = fit_selector(features, condition, image, wrong, max_clean_drop / 100)
    selected = selector.select(torch.from_numpy(features)).numpy()
    info(
        f"bank: {len(names)} conditions beside clean; {facts['clean_losses']} of {len(before)} clean val images lost, "
        f"clean drop at most {100 * facts['clean_drop_bound']:.2f} points (95 %)"
    )
    return Bank(
        state_digest(model.state_dict()),
        ("clean", *names),
        tuple(batch_norms(model)),
        {**tables(networks), **{f"selector/{name}": each for name, each in selector.state_dict().items()}},
        about={"classes": list(data.classes), "image_size": list(data.example.shape[-2:])},
        facts={
            **facts,
            "clean_images": len(before),
            "max_clean_drop": max_clean_drop / 100,
            "selected_correctly_percent": 100 * float((selected == condition).mean()),
            "passes": Passes(forward=counted + len(data.val)),
        },
    )


def _conditions(corruption: Corruption, kind: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the names of conditions beside clean, and of each its first level and their number."""
    if kind == "level":
        return list(corruption.level_names), [(level, 1) for level in range(1, len(corruption) + 1)]
    sizes = families(corruption)
    starts = [1 + sum(sizes[:place]) for place in range(len(sizes))]
    levels = [corruption.level_names[start - 1 : start - 1 + size] for start, size in zip(starts, sizes, strict=True)]
    names = [os.path.commonprefix(each).rstrip("-=_ ") if len(each) > 1 else each[0] for each in levels]
    names = ["degraded"] if len(sizes) == 1 else names
    return names, list(zip(starts, sizes, strict=True))


def _levels_of(images: Images, corruption: Corruption, first: int, count: int, seed: int) -> views.View:
    """Return images at one level, or each at one of several levels that is drawn by seed."""
    if count == 1:
        return views.levels_view(images, corruption, [first], BATCH)
    draw = runtime.generator(seed, "levels of a type", first)
    levels = first + torch.randint(count, (len(images),), generator=draw)
    device = images.labels.device
    return views.View(images, corruption, torch.arange(len(images), device=device), levels.to(device), BATCH)


def _features(
    images: Images, corruption: Corruption, ranges: list[tuple[int, int]], batch_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, condition and image of all images, clean and at each level."""
    view = views.levels_view(images, corruption, list(range(len(corruption) + 1)), batch_size)
    rows: list[Tensor] = [rings(pixels) for pixels, _labels in track(view, len(view), "frequencies")]
    condition = torch.zeros_like(view.levels)
    for number, (first, count) in enumerate(ranges, 1):
        condition[(view.levels >= first) & (view.levels < first + count)] = number
    return torch.cat(rows).cpu().numpy(), condition.cpu().numpy(), view.index.cpu().numpy()
