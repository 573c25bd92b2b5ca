"""The warm start of every repair: the network, fine-tuned on the training images that it classifies correctly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.cache import ContentCache, Entry, content_key
from deeppatch.data.images import Images
from deeppatch.hybrid.semisupervised import repair
from deeppatch.hybrid.training_data import Recipe, RepairSettings, SemiSupervisedData
from deeppatch.progress import info


def warm_start_facts(model: nn.Module, train: Images, recipe: Recipe, settings: RepairSettings) -> dict[str, Any]:
    """Return everything that the warm start depends on, as the key of the cache."""
    content = {"pixels": train.pixels, "labels": train.labels}
    return {
        "base": state_digest(model.state_dict()),
        "train": state_digest(content),  # type: ignore[arg-type]
        "device": train.labels.device.type,
        "batch": recipe.batch,
        "steps": recipe.steps,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "lr": settings.lr,
        "amp": settings.amp,
        **({"weight_decay": settings.weight_decay} if settings.weight_decay != RepairSettings.weight_decay else {}),
    }


def warm_start(
    model: nn.Module,
    data: SemiSupervisedData,
    recipe: Recipe,
    settings: RepairSettings,
    validate: Callable[[nn.Module], float],
    *,
    cache: ContentCache | None = None,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Return a copy of a model, fine-tuned with cross entropy on the training images that it classifies correctly.

    The accuracy before repair is that of this copy (Li, Chen and Xu, ISSTA 2022). A cache stores it by all that it
    depends on, and a checkpoint is bound to the same facts.
    """
    tuned = copy.deepcopy(model)
    facts = warm_start_facts(model, data.train, recipe, settings) if cache or checkpoint else {}
    cached = cache.read(facts) if cache else None
    if cache and cached:
        tuned.load_state_dict(cached.tensors)
        info(f"warm start: {cache.path(facts)}")
        return tuned
    if checkpoint:
        checkpoint = checkpoint.with_settings(start=content_key(facts))
    plain = replace(recipe, smoothing=0.0)
    repair(tuned, data.training_images_only(), plain, settings, validate, checkpoint=checkpoint, label="finetune")
    if cache:
        cache.write(facts, Entry(tuned.state_dict()))
        info(f"warm start: {cache.path(facts)}")
    return tuned
