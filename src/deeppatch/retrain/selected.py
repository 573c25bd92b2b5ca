"""Train a network on images that were chosen by a score, alone or together with clean ones."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch.data.corruptions import Corruption
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import Passes, ShardedEpoch
from deeppatch.data.pairs import after_clean, half_epochs, of_rows, shuffled_epochs
from deeppatch.data.views import View
from deeppatch.errors import UserError, check_positive
from deeppatch.progress import info
from deeppatch.retrain.finetune import Training, noted
from deeppatch.retrain.whole import train_whole


@dataclass(frozen=True)
class Scored:
    """Images of one fixed draw with a score each.

    Args:
        view: The images at their levels, M of them.
        scores: Their scores, (M,).
        wrong: Which of them the network classifies wrongly, bool (M,).
        index: The number of each in `train`, int64 (M,).
        passes: What the scores cost.
    """

    view: View
    scores: Tensor
    wrong: Tensor
    index: Tensor
    passes: Passes


def check_selection(images: int | None, *, only: bool, half: bool) -> None:
    """Raise UserError where the options of a selection are out of range or contradict each other."""
    if images is not None:
        check_positive(select_images=images)
    if only and half:
        raise UserError("select_only trains on the selection alone, select_half on as many clean images: choose one")


def train_selected(
    model: nn.Module,
    data: Data,
    degrade: Corruption,
    scored: Scored,
    rows: Tensor,
    training: Training,
    *,
    only: bool,
    half: bool,
    label: str,
) -> nn.Module:
    """Return a copy of a model, trained on chosen images, and on clean ones unless `only`.

    Args:
        model: The model; it is not changed.
        data: The data on its device.
        degrade: The degradation, for val.
        scored: The images that could be chosen.
        rows: The rows of the chosen ones, best first, int64 (K,).
        training: How the copy is trained.
        only: Whether the chosen images alone are trained on.
        half: Whether an epoch has as many images as `train`, half of them clean and half chosen; else it has all.
        label: The name of the method, for messages.
    """
    if not len(rows):
        raise UserError(f"{label}: there is no image to choose; give more training images")
    # in the order of the images, so that the same images are the same training whatever their scores
    chosen = of_rows(scored.view, rows.sort().values)
    batches = _epochs(data, chosen, training, only, half)
    tuned = copy.deepcopy(model)
    trained = train_whole(tuned, model, data, degrade, batches, training, label=label, spent=lambda: scored.passes)
    record, facts = _record(scored, rows, degrade)
    levels = ", ".join(f"{count} of {name}" for name, count in facts["selected_levels"].items() if count)
    info(f"{label}: {len(rows)} of {len(scored.scores)} images: {levels}")
    return noted(trained, facts=facts, documents={"selection.json": record})


def _epochs(data: Data, chosen: View, training: Training, only: bool, half: bool) -> list[ShardedEpoch]:
    if only:
        return shuffled_epochs(chosen, **training.budget)
    both = after_clean(data.train, chosen)
    if half:
        return half_epochs(both, len(data.train), **training.budget)
    return shuffled_epochs(both, **training.budget)


def _record(scored: Scored, rows: Tensor, degrade: Corruption) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return which images were chosen, for a file, and a summary."""
    levels, wrong = scored.view.levels[rows], scored.wrong[rows]
    counts = torch.bincount(levels, minlength=len(degrade) + 1).tolist()
    summary = {
        "scored_images": len(scored.scores),
        "selected_images": len(rows),
        "selected_failures_percent": 100 * wrong.double().mean().item(),
        "scored_failures_percent": 100 * scored.wrong.double().mean().item(),
        "selected_levels": dict(zip(("clean", *degrade.level_names), counts, strict=True)),
    }
    columns = {
        "index": scored.index[rows].tolist(),
        "level": levels.tolist(),
        "score": scored.scores[rows].tolist(),
    }
    return columns, summary
