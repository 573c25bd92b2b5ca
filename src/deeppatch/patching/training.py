"""Train a patch on degraded data while all other parameters are frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.data import corruptions
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import ChosenEpochs, StreamInputs, TrainingStream
from deeppatch.errors import UserError, check_positive
from deeppatch.evaluation import check_classifier
from deeppatch.patching.attachment import attach
from deeppatch.patching.names import INITS
from deeppatch.patching.patch_file import Patch, extract
from deeppatch.training import (
    SGDSettings,
    Stream,
    accuracy_over_levels,
    cross_entropy,
    degraded_epochs,
    fit,
    seeded,
)
from deeppatch.zoo.classifier import Classifier, device_of, network_of, normalize_of


def train_patch(
    model: nn.Module,
    data: Data,
    corruption: Any,
    channels: dict[str, list[int]],
    *,
    kind: str = "replace",
    init: str = "original",
    stream: TrainingStream | None = None,
    epochs: int = 20,
    passes: int | None = None,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
    reseed: bool = True,
    checkpoint: Checkpoint | None = None,
) -> Patch:
    """Train a patch for the given channels on clean and degraded images, and keep its best epoch (TOSEM 2023).

    In every epoch each image of `train` is clean with probability 1/2, otherwise at a level drawn uniformly. The best
    epoch has the highest accuracy on `val`, clean and at every level. All parameters of the model stay frozen; batch
    normalisations after the first patched convolution get running statistics that belong to the patch.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        data: The data; the parts `train` and `val` are read.
        corruption: The degradation: what `deeppatch.corruption` takes or returns.
        channels: The output channels to patch, by the name of their convolution, as `Ranking.choose` returns them.
        kind: `replace` for new filters, `crtunit` for correction units after the old ones (DeepCorrect, TIP 2019).
        init: Where the new filters of `replace` start: `original`, at the filters that they replace, or `fresh`, drawn
            as for a new convolution, as in the published code.
        stream: What chooses the images to train on, such as `SenseiStream()`, or `clean_stream` for clean images
            (default: clean with probability 1/2, else at a random level).
        epochs: The number of passes over `train`.
        passes: The number of images to train on, each time that one is, instead of `epochs`: for equal budgets.
        lr: The initial learning rate of SGD, which falls to zero along a cosine.
        momentum: The momentum of SGD.
        weight_decay: The L2 penalty.
        batch_size: The number of images at a time.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of the order of images, of their levels, and of new parameters.
        reseed: Whether torch's global generator is seeded for the training and restored afterwards; otherwise new
            parameters are drawn from it as it is.
        checkpoint: Where the training is saved after each epoch, and resumed from.

    Returns:
        The patch; its `history` has the loss and the validation accuracy of each epoch.

    Raises:
        UserError: When no channel is given, one does not exist, a convolution runs more than once in a forward pass,
            the model does not fit the data, or the training diverges.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from deeppatch.data.corruptions import GaussianBlur
        >>> from deeppatch.data.images import Images
        >>> images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> blur = GaussianBlur((1.0, 2.0))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> patch = train_patch(model, data, blur, {"0": [1, 3]}, epochs=2)
        >>> len(patch.history.loss)
        2
        >>> patched = patch.apply(model)
        >>> patched(torch.rand(5, 3, 12, 16)).shape
        torch.Size([5, 2])
    """
    check_positive(epochs=epochs, batch_size=batch_size, lr=lr)
    if init not in INITS:
        raise UserError(f"init={init!r}: choose from {', '.join(INITS)}")
    data, degrade = data.to(device_of(model)), corruptions.corruption(corruption, seed=seed)
    check_classifier(model, data.example, len(data.classes))
    plain = degraded_epochs(data.train, degrade, epochs=epochs, passes=passes, batch_size=batch_size, seed=seed)

    def chosen(patched: nn.Module) -> ChosenEpochs:
        if stream is None:
            return ChosenEpochs(plain)
        return stream(StreamInputs(patched, data.train, degrade, plain, batch_size, seed, amp))

    with seeded(seed if reseed else None):
        return fit_patch(
            model,
            channels,
            kind,
            chosen,
            accuracy_over_levels(data.val, degrade, batch_size=batch_size, amp=amp),
            data.example,
            settings=SGDSettings(lr, momentum, weight_decay),
            amp=amp,
            checkpoint=checkpoint,
            about=describe(model, data),
            init=init,
        )


def fit_patch(
    model: nn.Module,
    channels: dict[str, list[int]],
    kind: str,
    epochs: Sequence[Stream] | Callable[[nn.Module], ChosenEpochs],
    validate: Callable[[nn.Module], float],
    example: Tensor,
    *,
    settings: SGDSettings | None = None,
    amp: bool = False,
    checkpoint: Checkpoint | None = None,
    about: dict[str, Any] | None = None,
    init: str = "original",
) -> Patch:
    """Train units of `kind` at `channels` of a model on given batches and return the best epoch's patch.

    The model is not changed. `epochs` may be a function that returns them for the patched copy. `validate` returns the
    accuracy in [0, 1] by which the epoch is chosen; `example` has pixels (N, 3, H, W) in [0, 1]; `about` becomes the
    metadata of the patch.
    """
    patched = copy.deepcopy(model)
    attachment = attach(network_of(patched), channels, kind, normalize_of(patched, example))
    if init == "fresh":
        attachment.draw_filters()
    found = epochs(patched) if callable(epochs) else ChosenEpochs(epochs)  # type: ignore[arg-type]
    optimizer, schedule = (settings or SGDSettings()).optimizer(attachment.parameters(), found.epochs)
    history = fit(
        patched,
        found.epochs,
        validate,
        loss=cross_entropy,
        optimizer=optimizer,
        schedule=schedule,
        checkpoint=checkpoint,
        enter_training=lambda _model: attachment.enter_training(),
        carried=found.carried,
        amp=amp,
        label="patch",
    )
    return extract(attachment, state_digest(model.state_dict()), history=history, about=about)


def describe(model: nn.Module, data: Data) -> dict[str, Any]:
    """Return the metadata of a patch file: class names, image size, and normalisation if known."""
    about: dict[str, Any] = {"classes": list(data.classes), "image_size": list(data.example.shape[-2:])}
    if isinstance(model, Classifier):
        constants = {name: getattr(model.normalize, name, None) for name in ("mean", "std")}
        about |= {name: value.flatten().tolist() for name, value in constants.items() if value is not None}
    return about
