"""The inputs of influence: the base model with its last layer, and sets of features to compare with."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from deeppatch.cache import ContentCache
from deeppatch.cli.context import Context
from deeppatch.cli.naming import model_folder
from deeppatch.cli.predecessors import base_model
from deeppatch.decomposition import index_sets
from deeppatch.decomposition.features import LastLayer
from deeppatch.errors import UserError
from deeppatch.storage import read_given


def last_layer(context: Context) -> LastLayer:
    """Return the last layer of the base model; its features are cached in features/."""
    options = context.options
    cache = ContentCache(model_folder(options) / "features")
    return LastLayer(base_model(context), context.data, options.batch_size, options.amp, cache)


def given_sets(context: Context, last: LastLayer) -> list[tuple[Path, Tensor]]:
    """Return the files of --compare and their features (C, k)."""
    classes, width = len(context.source.classes), last.layer.in_features
    given = [(path, index_sets.parse(read_given(path), path, classes, width)) for path in context.options.compare]
    odd = [path for path, indices in given if indices.shape[1] not in context.options.k]
    if odd:
        raise UserError(f"--compare {odd[0]} has another k; add it to -k")
    return given
