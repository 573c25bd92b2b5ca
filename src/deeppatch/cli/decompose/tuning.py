"""decompose finetune: train a decomposed head, alone or with the network before it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from deeppatch.artifacts import state_digest, tensors_to_bytes
from deeppatch.cli.context import Context
from deeppatch.cli.features import Subject, head_accuracy
from deeppatch.cli.index_sets import named_sets
from deeppatch.data import views
from deeppatch.data.sources import Images
from deeppatch.decompose.features import Features, ShuffledFeatures
from deeppatch.decompose.head import DecomposedHead, decomposed
from deeppatch.decompose.tune import tune
from deeppatch.graph.hooks import swap
from deeppatch.metrics import accuracy
from deeppatch.progress import info
from deeppatch.report.scores import training_table
from deeppatch.training import History, clean_epochs, predict


def finetune(context: Context, model: Subject) -> None:
    """Train with Adam, and leave the weights of the best epoch on val and the accuracy on test after every epoch."""
    ((name, indices),) = named_sets(context, model).items()
    if context.already_finished():
        return
    tuned, history, before = (tune_head if context.options.head_only else tune_network)(context, model, indices)
    meta = {"base": state_digest(model.model.state_dict()), "features": name}
    context.stage.write("weights.safetensors", tensors_to_bytes(tuned.state_dict(), meta))
    table = training_table(history)
    table["test_accuracy_percent"] = [100 * value for value in history.watched]
    context.stage.write_table("history.csv", table)
    context.stage.write_json(
        "metrics.json",
        {
            "features": name,
            "head_only": context.options.head_only,
            "limit": context.options.limit,
            "train_images": len(context.splits.train),
            "test_images": len(context.splits.test),
            "test_accuracy_percent": {"before": 100 * before, "best_epoch": 100 * history.watched[history.best]},
            "best_epoch": history.best + 1,
        },
    )
    context.stage.finish()
    context.checkpoint().remove()
    print(table.to_string(index=False, float_format="%.4g"))
    info(
        f"test accuracy {100 * before:.2f} % before, {100 * history.watched[history.best]:.2f} % after the best epoch "
        f"on val; written to {context.stage.folder}"
    )


Tuned = tuple[nn.Module, History, float]


def tune_network(context: Context, model: Subject, indices: Tensor) -> Tuned:
    """Train the whole decomposed network on cropped and flipped images."""
    options, splits = context.options, context.splits
    sparse = decomposed(model.model, model.head, indices)
    epochs = clean_epochs(
        splits.train,
        epochs=options.max_epoch,
        batch_size=options.batch_size,
        seed=options.seed,
        augment=context.data.crop,
        mirror=context.data.mirror,
    )
    val, test = (view_accuracy(context, part) for part in (splits.val, splits.test))
    before = test(sparse)
    checkpoint = context.checkpoint(indices=indices.tolist(), base=state_digest(model.model.state_dict()))
    tuned, history = tune(
        sparse, epochs, val, lr=options.lr, watch=test, checkpoint=checkpoint, amp=options.amp, label="finetune"
    )
    return tuned, history, before


def view_accuracy(context: Context, images: Images) -> Callable[[nn.Module], float]:
    """Return the function that measures a network's accuracy, in [0, 1], on clean images."""
    view = views.clean(images, 256)
    return lambda model: accuracy(predict(model, view, amp=context.options.amp), view.labels)


def tune_head(context: Context, model: Subject, indices: Tensor) -> Tuned:
    """Train the head alone on cached features; what comes back is the network with the trained head."""
    val, test = (head_accuracy(model.features(part)) for part in ("val", "test"))
    head = DecomposedHead.from_linear(model.whole, indices)
    before = test(head)
    checkpoint = context.checkpoint(indices=indices.tolist(), base=state_digest(model.model.state_dict()))
    tuned, history = tune(
        head,
        feature_epochs(context, model.features("train")),
        val,
        lr=context.options.lr,
        watch=test,
        checkpoint=checkpoint,
        label="finetune --head-only",
    )
    network = decomposed(model.model, model.head, indices)
    swap(network, model.head, tuned)
    return network, history, before


def feature_epochs(context: Context, train: Features) -> list[ShuffledFeatures]:
    """Return the training batches of a head: --max_epoch passes over cached features."""
    options = context.options
    return [ShuffledFeatures(train, options.batch_size, options.seed, epoch) for epoch in range(options.max_epoch)]
