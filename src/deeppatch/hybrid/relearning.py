"""Repair a network with labels of a pool: fine-tuning as a warm start, then semi-supervised training."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.cache import ContentCache
from deeppatch.data.augmix import views as augmix_views
from deeppatch.data.dataset import Data
from deeppatch.data.pool import check_pool
from deeppatch.errors import DataProblem, UserError, check_counts
from deeppatch.hybrid.consistency import consistency
from deeppatch.hybrid.names import LEARNING_RATES, POOL_WEIGHTS, PSEUDO_LABELS, USES
from deeppatch.hybrid.safe_repair import SafeRepair, SafeTraining, safe_repair
from deeppatch.hybrid.selection import UNKNOWN, Selection
from deeppatch.hybrid.semisupervised import repair
from deeppatch.hybrid.training_data import Recipe, RepairSettings, SemiSupervisedData, known_and_weights
from deeppatch.hybrid.warm_start import warm_start
from deeppatch.hybrid.warm_start import warm_start_facts as warm_start_facts
from deeppatch.training import History, accuracy_on
from deeppatch.zoo.classifier import device_of


@dataclass(frozen=True)
class Relearned:
    """The result of a repair.

    Args:
        start: The warm start: the accuracy before repair is that of this network.
        repaired: The repaired copy, in eval mode: after the last epoch, in the safe recipe held to its floor.
        history: The history of the repair; `watched` has the accuracy on test after each epoch.
        safe: The steps of the safe recipe.
    """

    start: nn.Module
    repaired: nn.Module
    history: History
    safe: SafeRepair | None = None


def relearn(
    model: nn.Module,
    data: Data,
    pool_pixels: Tensor,
    selection: Selection,
    *,
    epochs: int = 10,
    lr: float | None = None,
    weight_decay: float = RepairSettings.weight_decay,
    use: str = "both",
    pseudo_labels: str = "safe",
    scope: str = "all",
    prior: Tensor | bool = True,
    views: int = 8,
    pool_weights: str = "dynamic",
    recipe: Recipe | None = None,
    amp: bool = False,
    seed: int = 2021,
    cache: ContentCache | None = None,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Repair a network with the labels of a selection and with unlabelled images of the pool.

    Args:
        model: The classifier of float pixels (N, 3, H, W) in [0, 1] to repair; it is not changed.
        data: The data; `train` is replayed, accuracy on `val` and `test` is measured only.
        pool_pixels: The images of the pool, uint8 (N, 3, H, W).
        selection: The selection of `choose_labels`, with labels unless only unlabelled images are used.
        epochs: The number of epochs of the warm start, and of the repair.
        lr: The learning rate of SGD: falling to zero along a cosine in the safe recipe (default: 0.03, after a warm
            start at 1e-3), constant in the published one (default: 1e-3).
        weight_decay: The L2 penalty.
        use: `both`, `labels` for only the supervised phase, or `unlabelled` for only pseudo-labels.
        pseudo_labels: `safe` corrects the class prior first, trains with logit-adjusted labels, and with pseudo-labels
            of an averaged teacher that exceed thresholds of their class; the whole pool is read, propagated labels are
            not. Its result is the best on val of networks between start and end, or the model as it is where none is
            better on val. `published` for HybridRepair's recipe.
        scope: What the safe recipe trains: `all`, `head`, or `norms`, which is the last layer and normalisations.
        prior: For the safe recipe: True to estimate the class shares of the pool, False to correct nothing, or the
            shares (C,) themselves.
        views: The number of AugMix views of each image of the pool, in addition to itself (published recipe; the safe
            one does not read it).
        pool_weights: How likely an image without label is to be drawn (published recipe): `dynamic`, by its certainty
            after each epoch; `fixed`, by that at the selection; `equal`, all alike. Only selections of `hybrid` differ.
        recipe: The constants of the training, such as the batch size and the weight of pseudo-labels (default: as
            published); the safe recipe reads its numbers of images in a batch and of batches alone.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of all random choices.
        cache: Where the warm start is stored, so that several repairs share it.
        checkpoint: Where the repair is saved after each epoch, and resumed from.

    Returns:
        The repaired copy in eval mode: with `published` after the last epoch, with `safe` what its floor has chosen.
        Its attribute `history` is a `deeppatch.training.History` of the repair; `history.watched` has the accuracy on
        test after each epoch.

    Raises:
        UserError: When a label is missing, there are no unlabelled images to use, `use`, `pseudo_labels`, `scope` or
            `pool_weights` is unknown, an option of the other recipe is given, a number is out of range, or the model
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
    if pseudo_labels not in PSEUDO_LABELS:
        raise UserError(f"pseudo_labels={pseudo_labels!r} is unknown; choose from {', '.join(PSEUDO_LABELS)}")
    if pseudo_labels == "published" and (scope != "all" or prior is not True):
        raise UserError("scope and prior can only be given with pseudo_labels='safe'")
    relearned = repair_from_warm_start(
        model,
        data,
        pool_pixels,
        selection,
        RepairSettings(
            epochs, LEARNING_RATES[pseudo_labels] if lr is None else lr, weight_decay=weight_decay, seed=seed, amp=amp
        ),
        use=use,
        views=views,
        pool_weights=pool_weights,
        recipe=recipe,
        safe=SafeTraining(scope, prior) if pseudo_labels == "safe" else None,
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
    pool_weights: str = "dynamic",
    recipe: Recipe | None = None,
    safe: SafeTraining | None = None,
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
        settings: The epochs, the learning rate and the seed of both the warm start and the repair; with `safe` the
            warm start has the published learning rate.
        use: One of USES: `both`, `labels` or `unlabelled`.
        views: The number of AugMix views of each image of the pool, in addition to itself.
        pool_weights: One of POOL_WEIGHTS: `dynamic`, `fixed` or `equal`.
        recipe: The constants of the training (default: as published).
        safe: What the safe recipe is told, to repair by it in place of the published one.
        cache: Where the warm start is stored, so that several repairs share it.
        start_checkpoint: Where the training of the warm start is saved after each epoch, and resumed from.
        checkpoint: Where the repair is saved after each epoch, and resumed from; it must continue from the same warm
            start and selection.

    Raises:
        UserError: When a label is missing, there are no unlabelled images to use, `use` is unknown, with `safe` what
            only the published recipe reads is given, or the model classifies no training image correctly.

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
    for name, value, known in (("use", use, USES), ("pool_weights", pool_weights, POOL_WEIGHTS)):
        if value not in known:
            raise UserError(f"{name}={value!r} is unknown; choose from {', '.join(known)}")
    if use != "unlabelled" and bool((selection.labels == UNKNOWN).any()):
        raise UserError("labels of the selection are missing; give them with selection.with_labels(labels)")
    if use == "unlabelled" and not len(selection.unlabelled) and safe is None:
        raise UserError("use='unlabelled': the selection has no unlabelled images; choose another method")
    check_counts(views=views)
    recipe = recipe or Recipe()
    if safe is not None:
        safe.check(len(data.classes), recipe, pool_weights)
    check_pool(pool_pixels, data)
    selection.check(pool_pixels, len(data.classes))
    device = device_of(model)
    data = data.to(device)
    training_data = semi_supervised_data(
        data, pool_pixels.to(device), selection, use=use, views=views, settings=settings, pool_weights=pool_weights
    )
    on_val, on_test = (accuracy_on(part, amp=settings.amp) for part in (data.val, data.test))
    first = settings if safe is None else settings_of_warm_start(settings)
    start = warm_start(model, training_data, recipe, first, on_val, cache=cache, checkpoint=start_checkpoint)
    if safe is not None:
        steps = safe_repair(
            start,
            data,
            training_data.pool,
            selection,
            settings,
            use=use,
            training=safe,
            recipe=recipe,
            raw=model,
            checkpoint=checkpoint,
        )
        return Relearned(start, steps.floor.network, steps.history, steps)
    if checkpoint is not None:
        chosen = {"known": training_data.known, "weights": training_data.weights}
        checkpoint = checkpoint.with_settings(start=state_digest(start.state_dict()), selection=state_digest(chosen))
    repaired = copy.deepcopy(start)
    history = repair(
        repaired, training_data, recipe, settings, on_val, watch=lambda m: {"test": on_test(m)}, checkpoint=checkpoint
    )
    return Relearned(start, repaired, history)


def settings_of_warm_start(settings: RepairSettings) -> RepairSettings:
    """Return the settings of the warm start before the safe recipe: those of the repair, at the published rate."""
    return replace(settings, lr=LEARNING_RATES["published"])


def semi_supervised_data(
    data: Data,
    pool_pixels: Tensor,
    selection: Selection,
    *,
    use: str,
    views: int,
    settings: RepairSettings,
    pool_weights: str = "dynamic",
) -> SemiSupervisedData:
    """Combine what a repair learns from: training images, the pool, and the part of the selection that `use` names.

    Everything is on the device of `pool_pixels`, uint8 (N, 3, H, W).
    """
    if not isinstance(data.train.pixels, Tensor):
        raise DataProblem(f"{data.name} does not fit in memory; choose other training images")
    weighted = bool(selection.facts.get("weighted"))
    known, weights = known_and_weights(selection, len(pool_pixels), use, pool_weights)

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
        entropy if weighted and pool_weights == "dynamic" else None,
        crop=data.crop,
        mirror=data.mirror,
        supervised=use != "unlabelled",
        weighted=weighted,
    )
