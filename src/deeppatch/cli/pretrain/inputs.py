"""The pretrained model: published weights, a given file, or training from scratch."""

from __future__ import annotations

from typing import Any

import torch

from deeppatch.cli.context import Context
from deeppatch.cli.measure import plain_epochs, training_table
from deeppatch.cli.pretrain.doctor import spaced
from deeppatch.cli.pretrain.halfway import Halfway
from deeppatch.cli.pretrain.recipes import RECIPES
from deeppatch.data import views
from deeppatch.data.files import Files
from deeppatch.metrics import accuracy
from deeppatch.progress import info
from deeppatch.training import cross_entropy, fit, predict, sgd
from deeppatch.zoo import weights
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import ENTRIES, IMAGENET_STATS, PROTOCOL_STATS, Entry


def pretrained(context: Context) -> tuple[Classifier | None, dict[str, Any]]:
    """Return the model and where it is from; None when -r finds the stage finished."""
    options = context.options
    entry = ENTRIES.get((options.dataset, options.model))
    if options.weights is None and (options.train or entry is None):
        given = "--train" if options.recipe == "default" else f"--recipe {options.recipe}"
        why = given if options.train else f"no weights are published for {options.model} on {options.dataset}"
        info(f"weights: training from scratch ({why})")
        return (None, {}) if context.already_finished() else train(context, entry)
    path = options.weights or weights.fetch(entry.url)  # type: ignore[union-attr]
    state = weights.read(path)
    context.stage.inherit(path, path.read_bytes())
    if context.already_finished():
        return None, {}
    origin = "given" if options.weights else f"published, {entry.top1} % on test"  # type: ignore[union-attr]
    info(f"weights: {path} ({origin})")
    mean, std = normalisation(context, entry, state)
    network = context.new_network()
    own = {k.removeprefix("network."): v for k, v in state.items() if not k.startswith("normalize.")}
    weights.load_network(network, own, path)
    return context.place(Classifier(network, mean, std)), {"weights": f"{path.name}, {origin}"}


def normalisation(
    context: Context, entry: Entry | None, state: dict[str, torch.Tensor]
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation: as given, as saved in the file, of the zoo, or of the training images."""
    saved = [state.get(f"normalize.{key}") for key in ("mean", "std")]
    if context.options.mean:
        mean, std, origin = context.options.mean, context.options.std, "as given"
    elif saved[0] is not None and saved[1] is not None:
        mean, std, origin = saved[0].flatten().tolist(), saved[1].flatten().tolist(), "from the weights file"
    elif context.options.bias and context.options.dataset in PROTOCOL_STATS:
        mean, std, origin = *map(list, PROTOCOL_STATS[context.options.dataset]), "HybridRepair's"
    elif entry is not None:
        mean, std, origin = list(entry.mean), list(entry.std), "of the zoo"
    elif isinstance(context.splits.train.pixels, Files):
        mean, std, origin = *map(list, IMAGENET_STATS), "ImageNet's"
    else:
        pixels = views.to_float(context.splits.train.pixels)
        mean, std = pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3)).tolist()
        origin = "of the training images"
        if context.options.weights:
            origin += "; give --mean and --std if the weights were made with others"
    info(f"normalisation: mean {spaced(mean)}, std {spaced(std)} ({origin})")
    return mean, std


def train(context: Context, entry: Entry | None) -> tuple[Classifier, dict[str, Any]]:
    """Train from scratch with SGD as --recipe says, keeping the best epoch on clean val images."""
    options, splits, recipe = context.options, context.splits, RECIPES[context.options.recipe]
    model = context.place(Classifier(context.new_network(), *normalisation(context, entry, {})))
    epochs = plain_epochs(context, augment=recipe.augment)
    steps = sum(map(len, epochs))
    optimizer, schedule = sgd(
        model.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        steps=steps,
        drops=None if recipe.drops is None else [round(share * steps) for share in recipe.drops],
    )
    val, earlier = views.clean(splits.val, options.batch_size), halfway(context)
    history = fit(
        model,
        epochs,
        lambda m: accuracy(predict(m, val, amp=options.amp), val.labels),
        loss=cross_entropy,
        optimizer=optimizer,
        schedule=schedule,
        checkpoint=context.checkpoint(),
        after_epoch=earlier.keep if recipe.underfitted else None,
        amp=options.amp,
        label="pretrain",
    )
    context.stage.write_table("history.csv", training_table(history))
    named = "" if options.recipe == "default" else f" by the recipe {options.recipe}"
    facts: dict[str, Any] = {"weights": f"trained here{named}, {options.max_epoch} epochs, best {history.best + 1}"}
    if recipe.underfitted:
        context.stage.write("weights-underfitted.safetensors", earlier.state(history))
        facts["underfitted_epoch"] = history.best // 2 + 1
    return model, facts


def halfway(context: Context) -> Halfway:
    """Return where the epochs are kept of which one is the under-fitted."""
    return Halfway(context.stage.folder / "epochs", context.options.max_epoch)
