"""The inputs of annotate and relearn: the pool, the split of a biased model, and a trained encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from deeppatch.cache import ContentCache
from deeppatch.cli.context import Context
from deeppatch.cli.naming import model_folder
from deeppatch.data import biased_split
from deeppatch.data.biased_split import Partition
from deeppatch.data.pool import Pool, folder_pool, simulated_pool
from deeppatch.errors import StaleArtifact
from deeppatch.hybrid.choice_settings import ChoiceSettings
from deeppatch.hybrid.diagnostics import judge_of_pseudo_labels
from deeppatch.hybrid.encoder_training import EncoderSettings, TrainedEncoder, train_encoder
from deeppatch.hybrid.given_encoder import GivenEncoder, load_encoder
from deeppatch.hybrid.selection_inputs import SelectionInputs
from deeppatch.progress import info
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.resolve import resolve

SPLIT = "split.safetensors"


def pool_of(context: Context) -> Pool:
    """Return the pool of --bias, or the images under PATH/pool of -d folder:PATH; --limit keeps a random subset."""
    options = context.options
    if options.bias:
        parts = partition_of(context)
        check_partition(context, parts)
        pool = simulated_pool(context.source, parts, context.device)
        info(f"pool: {len(pool)} images, bias {options.bias}, cut in {parts.order}; an oracle has their labels")
        return pool
    folder = Path(options.dataset.removeprefix("folder:")) / "pool"
    pool = folder_pool(folder, context.scaling, context.device, limit=options.limit, seed=options.seed)
    context.stage.inputs[str(folder)] = pool.digest  # so that -r sees other images
    info(f"pool: {len(pool)} images without labels in {folder}")
    return pool


def judge_of(pool: Pool) -> Callable[[Tensor, Tensor], dict[str, float]] | None:
    """Return a function that measures pseudo-labels of a simulated pool, from indices and labels; else None.

    It returns diagnostics, which are not available in the field.
    """
    return None if pool.truth is None else judge_of_pseudo_labels(pool.truth)


def partition_of(context: Context) -> Partition:
    """Return the partition of the data set under --bias."""
    options = context.options
    return biased_split.partition(context.source, options.bias, options.seed, options.limit, context.given_split)


def check_partition(context: Context, parts: Partition) -> None:
    """Raise StaleArtifact when the model was trained on another split, because it may have been trained on the pool."""
    given = context.options.weights
    path = (given.parent if given else context.folder("pretrain")) / SPLIT
    command = context.command("pretrain")
    if given and not path.exists():
        info(f"no {SPLIT} beside {given}: it may have been trained on images of the pool")
        return
    content = path.read_bytes() if given else context.stage.read(path, command)
    if given:
        context.stage.inherit(path, content)
    if biased_split.partition_from_bytes(content, path).digest != parts.digest:
        raise StaleArtifact(f"{path} cuts {context.source.name} otherwise; make it again with: {command}")


def write_partition(context: Context) -> None:
    """Write the partition of the data set after pretrain of a biased model; without --bias, do nothing.

    The file's metadata have the order, the bias, and a hash of the lists. The number of training images of each class
    is logged.
    """
    options, source = context.options, context.source
    if not options.bias:
        return
    parts = partition_of(context)
    context.stage.write(SPLIT, parts.to_bytes(dataset=source.name, bias=options.bias, digest=parts.digest))
    counts = torch.bincount(context.splits.train.labels, minlength=len(source.classes)).tolist()
    info(
        f"bias {options.bias}, cut in {parts.order}: {' '.join(map(str, counts))} training images by class, "
        f"{len(parts.pool)} in the pool (split {parts.digest[:12]})"
    )


def encoder_of(context: Context, pool: Pool, model: Classifier) -> TrainedEncoder | GivenEncoder | None:
    """Return the encoder of --features: trained and cached in encoder/, read from a file, or None for the model's own.

    An encoder from a file reads pixels with the normalisation of the model.
    """
    options = context.options
    if options.features_file is not None:
        normalize = model.normalize
        mean, std = normalize.mean.flatten().tolist(), normalize.std.flatten().tolist()
        machine = {"device": context.device, "batch_size": options.batch_size, "amp": options.amp}
        given = load_encoder(options.features_file, mean, std, **machine)
        context.stage.inherit(options.features_file, options.features_file.read_bytes())
        info(f"inherited {options.features_file}: {given.facts['width']} features of each image")
        return given
    if options.features != "ssl":
        return None
    settings = EncoderSettings(options.encoder, options.encoder_epochs, options.batch_size, options.seed, options.amp)
    encoder = train_encoder(
        lambda: resolve(options.encoder).build(2),
        context.data,
        pool.pixels,
        settings,
        cache=ContentCache(model_folder(options) / "encoder"),
        checkpoint=context.checkpoint(),
    )
    correct = encoder.facts["knn_accuracy_on_val_percent"]
    info(f"encoder: most neighbours of {correct} % of val images are of their class")
    return encoder


def selection_inputs(
    context: Context, model: nn.Module, pool: Pool, encode: Callable[[Tensor], Tensor] | None
) -> SelectionInputs:
    """Return what the methods that choose images read."""
    options, train = context.options, context.splits.train
    return SelectionInputs(
        model,
        pool.pixels,
        train.pixels[:],
        options.seed,
        options.views,
        encode,
        options.batch_size,
        options.amp,
        train_labels=train.labels,
        val=context.splits.val,
        settings=ChoiceSettings(options.tau, options.cluster_size, options.coreset_start),
    )
