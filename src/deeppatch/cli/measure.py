"""What several stages measure: right answers by blur level, and training histories."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from torch import Tensor, nn

from deeppatch.cli.context import Context
from deeppatch.data import views
from deeppatch.data.sources import Images
from deeppatch.metrics import accuracy
from deeppatch.training import History, predict


def right_by_level(context: Context, model: nn.Module, images: Images, label: str = "evaluating") -> Tensor:
    """Return which images a model gets right, bool (levels + 1, images); row 0 is clean, the rest the blur levels."""
    everything = views.append(images, context.blur, context.options.batch_size)
    predictions = predict(model, everything, amp=context.options.amp, label=label)
    return (predictions == everything.labels).view(-1, len(images))


def append_accuracy(context: Context) -> Callable[[nn.Module], float]:
    """Return the function that chooses a correction's best epoch: accuracy in [0, 1] on val, view append."""
    view = views.append(context.splits.val, context.blur, context.options.batch_size)
    return lambda model: accuracy(predict(model, view, amp=context.options.amp, label="validating"), view.labels)


def plain_epochs(context: Context, *, augment: bool = True) -> list[views.Shuffled]:
    """Return --max_epoch passes over clean train, where `augment` cropped and mirrored if that leaves classes alone."""
    options, source = context.options, context.source
    train, augment = context.splits.train, augment and source.augment
    return [
        views.Shuffled(train, options.batch_size, options.seed, epoch, augment=augment, mirror=source.mirror)
        for epoch in range(options.max_epoch)
    ]


def degraded_epochs(context: Context) -> list[views.Shuffled]:
    """Return the training batches of a correction: --crt_epoch passes over train, view random."""
    options = context.options
    return [
        views.Shuffled(context.splits.train, options.batch_size, options.seed, epoch, corruption=context.blur)
        for epoch in range(options.crt_epoch)
    ]


def training_table(history: History) -> pd.DataFrame:
    """Return one row an epoch: epoch from 1, loss, validation accuracy in percent, whether it is the best."""
    epochs = range(1, len(history.loss) + 1)
    return pd.DataFrame(
        {
            "epoch": epochs,
            "loss": history.loss,
            "val_accuracy_percent": [100 * value for value in history.accuracy],
            "best": [epoch - 1 == history.best for epoch in epochs],
        }
    )
