"""Repair a network with labels of a pool: fine-tuning as a warm start, then semi-supervised training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.cache import ContentCache, Entry, content_key
from deeppatch.data.augmix import views as augmix_views
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.data.pool import check_pool
from deeppatch.errors import DataProblem, UserError, check_positive
from deeppatch.hybrid.consistency import consistency
from deeppatch.hybrid.names import USES
from deeppatch.hybrid.selection import UNKNOWN, Selection
from deeppatch.hybrid.semisupervised import repair
from deeppatch.hybrid.training_data import Recipe, RepairSettings, SemiSupervisedData, known_and_weights
from deeppatch.progress import info
from deeppatch.training import History, accuracy_on
from deeppatch.zoo.classifier import device_of


@dataclass(frozen=True)
class Relearned:
    """The result of a repair.

    Args:
        start: The warm start: the accuracy before repair is that of this network.
        repaired: The repaired copy after the last epoch, in eval mode.
        history: The history of the repair; `watched` has the accuracy on test after each epoch.
    """

    start: nn.Module
    repaired: nn.Module
    history: History


def relearn(
    model: nn.Module,
    data: Data,
    pool_pixels: Tensor,
    selection: Selection,
    *,
    epochs: int = 10,
    lr: float = 1e-3,
    use: str = "both",
    views: int = 8,
    recipe: Recipe | None = None,
    amp: bool = False,
    seed: int = 2021,
    cache: ContentCache | None = None,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Repair a network with the labels of a selection and with unlabelled images of the pool (HybridRepair).

    Args:
        model: The classifier of float pixels (N, 3, H, W) in [0, 1] to repair; it is not changed.
        data: The data; `train` is replayed, accuracy on `val` and `test` is measured only.
        pool_pixels: The images of the pool, uint8 (N, 3, H, W).
        selection: The selection of `choose_labels`, with labels unless only unlabelled images are used.
        epochs: The number of epochs of the warm start, and of the repair.
        lr: The constant learning rate of SGD.
        use: `both`, `labels` for only the supervised phase, or `unlabelled` for only pseudo-labels.
        views: The number of AugMix views of each image of the pool, in addition to itself.
        recipe: The constants of the training, such as the batch size (default: as published).
        amp: Whether forward passes run in bfloat16.
        seed: The seed of all random choices.
        cache: Where the warm start is stored, so that several repairs share it.
        checkpoint: Where the repair is saved after each epoch, and resumed from.

    Returns:
        The repaired copy after the last epoch, in eval mode. Its attribute `history` is a
        `deeppatch.training.History` of the repair; `history.watched` has the accuracy on test after each epoch.

    Raises:
        UserError: When a label is missing, there are no unlabelled images to use, `use` is unknown, or the model
            classifies no training image correctly.

    Li, Chen and Xu, "HybridRepair: towards annotation-efficient repair for deep learning models", ISSTA 2022.

    >>> from deeppatch.data.images import Images
    >>> from deeppatch.hybrid.selection import supervised
    >>> pixels = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    >>> train = Images(pixels[:20], torch.arange(20) % 2)
    >>> _ = torch.manual_seed(1)
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    >>> selection = supervised(torch.tensor([3, 8]), torch.tensor([0, 1]))
    >>> data = Data(train, train, train, ("cat", "dog"))
    >>> repaired = relearn(network, data, pixels[20:], selection, epochs=2, recipe=Recipe(batch=8))
    >>> len(repaired.history.loss)
    2
    """
    relearned = repair_from_warm_start(
        model,
        data,
        pool_pixels,
        selection,
        RepairSettings(epochs, lr, seed=seed, amp=amp),
        use=use,
        views=views,
        recipe=recipe,
        cache=cache,
        checkpoint=checkpoint,
    )
    relearned.repaired.history = relearned.history  # type: ignore[assignment]
    return relearned.repaired


def repair_from_warm_start(
    model: nn.Module,
    data: Data,
    pool_pixels: Tensor,
    selection: Selection,
    settings: RepairSettings,
    *,
    use: str = "both",
    views: int = 8,
    recipe: Recipe | None = None,
    cache: ContentCache | None = None,
    start_checkpoint: Checkpoint | None = None,
    checkpoint: Checkpoint | None = None,
) -> Relearned:
    """Repair a network as `relearn` does, and return also the warm start that the repair is compared with.

    Args:
        model: The classifier of float pixels (N, 3, H, W) in [0, 1] to repair; it is not changed.
        data: The data; `train` is replayed, accuracy on `val` and `test` is measured only.
        pool_pixels: The images of the pool, uint8 (N, 3, H, W).
        selection: The selection of `choose_labels`, with labels unless only unlabelled images are used.
        settings: The epochs, the learning rate and the seed of both the warm start and the repair.
        use: One of USES: `both`, `labels` or `unlabelled`.
        views: The number of AugMix views of each image of the pool, in addition to itself.
        recipe: The constants of the training (default: as published).
        cache: Where the warm start is stored, so that several repairs share it.
        start_checkpoint: Where the training of the warm start is saved after each epoch, and resumed from.
        checkpoint: Where the repair is saved after each epoch, and resumed from; it must continue from the same warm
            start and selection.

    Raises:
        UserError: When a label is missing, there are no unlabelled images to use, `use` is unknown, or the model
            classifies no training image correctly.

    >>> from deeppatch.data.images import Images
    >>> from deeppatch.hybrid.selection import supervised
    >>> pixels = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    >>> train = Images(pixels[:20], torch.arange(20) % 2)
    >>> _ = torch.manual_seed(1)
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    >>> data, selection = Data(train, train, train, ("cat", "dog")), supervised(torch.tensor([3]), torch.tensor([0]))
    >>> found = repair_from_warm_start(
    ...     network, data, pixels[20:], selection, RepairSettings(epochs=2), recipe=Recipe(batch=8)
    ... )
    >>> torch.equal(found.start[1].weight, found.repaired[1].weight), len(found.history.loss)
    (False, 2)
    """
    if use not in USES:
        raise UserError(f"use={use!r} is unknown; choose from {', '.join(USES)}")
    if use != "unlabelled" and bool((selection.labels == UNKNOWN).any()):
        raise UserError("labels of the selection are missing; give them with selection.with_labels(labels)")
    if use == "unlabelled" and not len(selection.unlabelled):
        raise UserError("use='unlabelled': the selection has no unlabelled images; choose another method")
    check_positive(epochs=settings.epochs, lr=settings.lr)
    check_pool(pool_pixels)
    _check_fit(selection, len(pool_pixels), len(data.classes))
    device = device_of(model)
    data, recipe = data.to(device), recipe or Recipe()
    if pool_pixels.shape[2:] != data.example.shape[2:]:
        sizes = f"{tuple(pool_pixels.shape[2:])}, those of the data {tuple(data.example.shape[2:])}"
        raise UserError(f"images of the pool have size {sizes}; resize the pool")
    training_data = semi_supervised_data(
        data, pool_pixels.to(device), selection, use=use, views=views, settings=settings
    )
    on_val, on_test = (accuracy_on(part, amp=settings.amp) for part in (data.val, data.test))
    start = warm_start(model, training_data, recipe, settings, on_val, cache=cache, checkpoint=start_checkpoint)
    if checkpoint is not None:
        chosen = {"known": training_data.known, "weights": training_data.weights}
        checkpoint = checkpoint.with_settings(start=state_digest(start.state_dict()), selection=state_digest(chosen))
    repaired = copy.deepcopy(start)
    history = repair(
        repaired, training_data, recipe, settings, on_val, watch=lambda m: {"test": on_test(m)}, checkpoint=checkpoint
    )
    return Relearned(start, repaired, history)


def _check_fit(selection: Selection, count: int, classes: int) -> None:
    labels = selection.labels[selection.labels != UNKNOWN]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, classes from 0 to {classes - 1}"
        )
    if len(selection.members) and int(selection.members.max()) >= count:
        raise UserError(
            f"the selection names image {int(selection.members.max())} of a pool of {count}; give the right pool"
        )


def semi_supervised_data(
    data: Data, pool_pixels: Tensor, selection: Selection, *, use: str, views: int, settings: RepairSettings
) -> SemiSupervisedData:
    """Combine what a repair learns from: training images, the pool, and the part of the selection that `use` names.

    Everything is on the device of `pool_pixels`, uint8 (N, 3, H, W).
    """
    if not isinstance(data.train.pixels, Tensor):
        raise DataProblem(f"{data.name} does not fit in memory; choose other training images")
    known, weights = known_and_weights(selection, len(pool_pixels), use)

    def entropy(model: nn.Module, epochs: int) -> Tensor:
        generator = runtime.generator(settings.seed, "unsmoothness", epochs)
        return consistency(model, pool_pixels, views, generator, amp=settings.amp).entropy

    def make_views(pixels: Tensor, generator: torch.Generator) -> Tensor:
        return augmix_views(pixels, views, generator)

    return SemiSupervisedData(
        data.train,
        pool_pixels,
        known.to(pool_pixels.device),
        weights.to(pool_pixels.device),
        len(data.classes),
        make_views,
        entropy if selection.facts.get("weighted") else None,
        crop=data.crop,
        mirror=data.mirror,
        supervised=use != "unlabelled",
    )


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
