"""What several stages measure: right answers by blur level, and training histories."""

from __future__ import annotations

import pandas as pd
from torch import Tensor, nn

from deeppatch.cli.context import Context
from deeppatch.data import views
from deeppatch.data.sources import Images
from deeppatch.training import History, predict


def right_by_level(context: Context, model: nn.Module, images: Images, label: str = "evaluating") -> Tensor:
    """Return which images a model gets right, bool (levels + 1, images); row 0 is clean, the rest the blur levels."""
    everything = views.append(images, context.blur, context.options.batch_size)
    predictions = predict(model, everything, amp=context.options.amp, label=label)
    return (predictions == everything.labels).view(-1, len(images))


def plain_epochs(context: Context, *, augment: bool = True) -> list[views.Shuffled]:
    """Return --max_epoch passes over clean train, where `augment` cropped and mirrored if that leaves classes alone."""
    options, source = context.options, context.source
    train, augment = context.splits.train, augment and source.augment
    return [
        views.Shuffled(train, options.batch_size, options.seed, epoch, augment=augment, mirror=source.mirror)
        for epoch in range(options.max_epoch)
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
