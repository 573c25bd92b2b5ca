"""The inputs of pretrain: published or given weights, and their normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from deeppatch.cli.context import Context
from deeppatch.cli.predecessors import check_classes, metadata
from deeppatch.modular.modularity_loss import ModularityLoss, ModularityWeights
from deeppatch.modular.names import MODULARITY
from deeppatch.pretraining.normalisation import of_training_images
from deeppatch.pretraining.recipes import Recipe
from deeppatch.progress import info
from deeppatch.zoo import weights
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import Entry
from deeppatch.zoo.normalisation import OF_TRAINING_IMAGES, choose_normalisation


@dataclass(frozen=True)
class Weights:
    """A file of weights: the network with them, the normalisation saved with them, and their origin in words."""

    path: Path
    network: nn.Module
    normalisation: tuple[Sequence[float], Sequence[float]] | None
    origin: str


def published(context: Context) -> Entry | None:
    """Return the published weights of the network for the data set, or None."""
    return context.architecture.published.get(context.options.dataset)


def read_weights(context: Context) -> Weights | None:
    """Read the weights to start from, given or published; None if the network is to be trained from scratch."""
    options, entry = context.options, published(context)
    path: Path | None = options.weights
    if path is None and entry is not None and not (options.train or options.modular):
        path = weights.fetch_entry(entry)
    if path is None:
        given = "--train" if options.recipe == "default" else f"--recipe {options.recipe}"
        given = "--modular" if options.modular and not options.train else given
        why = (
            given
            if options.train or options.modular
            else f"no weights are published for {options.model} on {options.dataset}"
        )
        info(f"weights: training from scratch ({why})")
        return None
    state = weights.read(path, context.new_network)
    check_classes(context, metadata(path), path)
    network = context.new_network()
    weights.load_network(network, weights.network_state(state), path)
    both_given = options.mean is not None and options.std is not None
    saved = None if both_given else weights.saved_normalisation(state, path)
    context.stage.inherit(path, path.read_bytes())
    if options.weights:
        return Weights(path, network, saved, "given")
    accuracy = f", {entry.top1} % on test" if entry and entry.top1 else ""
    return Weights(path, network, saved, f"published{accuracy}")


def classifier(context: Context, weights_file: Weights | None) -> Classifier:
    """Return the network of the zoo with these weights, or freshly initialised, on the device."""
    if weights_file is None:
        return context.place(Classifier(context.new_network(), *normalisation(context, None)))
    info(f"weights: {weights_file.path} ({weights_file.origin})")
    return context.place(Classifier(weights_file.network, *normalisation(context, weights_file.normalisation)))


def modularity_loss(context: Context, model: Classifier, recipe: Recipe) -> ModularityLoss | None:
    """Return the loss of --modular, or None without it."""
    options = context.options
    if not options.modular:
        return None
    weights = ModularityWeights(*(options.modular_weights or MODULARITY))
    return ModularityLoss(model, context.example, weights, steps=recipe.steps(len(context.data.train)))


def normalisation(
    context: Context, saved: tuple[Sequence[float], Sequence[float]] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation for these weights, and log where they come from."""
    options = context.options
    found = choose_normalisation(
        mean=options.mean,
        std=options.std,
        saved=saved,
        protocol=options.dataset if options.bias else None,
        entry=published(context),
        library=context.architecture.normalisation,
        otherwise=lambda: of_training_images(context.splits.train),
    )
    caution = ""
    if options.weights and found.origin == OF_TRAINING_IMAGES:
        caution = "; give --mean and --std if the weights were made with others"
    info(f"normalisation: mean {spaced(found.mean)}, std {spaced(found.std)} ({found.origin}{caution})")
    return found.mean, found.std


def spaced(values: Sequence[float]) -> str:
    """Format numbers as on the command line."""
    return " ".join(f"{value:.4g}" for value in values)
