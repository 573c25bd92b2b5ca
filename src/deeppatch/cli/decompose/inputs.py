"""The inputs of decompose: the last layer, and sets of features from influence, files, or class-specific gates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deeppatch.cli.context import Context
from deeppatch.cli.influence.inputs import last_layer
from deeppatch.decomposition import index_sets
from deeppatch.decomposition.features import LastLayer
from deeppatch.decomposition.tune import TuneSettings
from deeppatch.errors import WrongWeights
from deeppatch.progress import info
from deeppatch.storage import read_given
from deeppatch.zoo import weights
from deeppatch.zoo.classifier import Classifier

__all__ = ["last_layer", "named_sets", "sets_with_layers", "tune_settings"]
LOWEST, HIGHEST = "CSG, lowest gates (as published)", "CSG, highest gates"


def tune_settings(options: Any) -> TuneSettings:
    """Return the settings of fine-tuning."""
    return TuneSettings(options.max_epoch, options.lr, options.batch_size, options.seed, options.amp)


def named_sets(context: Context, last: LastLayer, ks: Sequence[int]) -> dict[str, Tensor]:
    """Return indices (C, k) by name: from the files of -i, or else from influence for each of `ks`."""
    classes, width = len(context.source.classes), last.layer.in_features
    sets: dict[str, Tensor] = {}
    for path in context.options.indices or []:
        content = read_given(path)
        name = path.stem if path.stem not in sets else str(path)
        sets[name] = index_sets.parse(content, path, classes, width)
        context.stage.inherit(path, content)
    if sets:
        return sets
    for k in ks:
        path, command = context.locate("influence", "indices.json", k=k, augment=False)
        content = context.stage.read(path, command)
        sets[f"influence, k={k}"] = index_sets.parse(content, path, classes, width)
        info(f"inherited {path}")
    return sets


def sets_with_layers(context: Context, last: LastLayer, ks: Sequence[int]) -> dict[str, tuple[LastLayer, Tensor]]:
    """Return the sets of `named_sets` and those of the gates of --csg, by name, each with the layer that it is for."""
    sets = {name: (last, indices) for name, indices in named_sets(context, last, ks).items()}
    if context.options.csg:
        other, gates = load_gates(context, last, context.options.csg)
        for k in sorted({indices.shape[1] for _, indices in sets.values()}):
            for name, highest in ((LOWEST, False), (HIGHEST, True)):
                sets[f"{name}, k={k}"] = (other, index_sets.from_gates(gates, k, highest=highest))
    return sets


def load_gates(context: Context, last: LastLayer, path: Path) -> tuple[LastLayer, Tensor]:
    """Return the network that was trained with class-specific gates, and the gates (C, D), of the checkpoint --csg."""
    state = dict(weights.read(path))
    gates = state.pop("csg", None)
    shape = (last.layer.out_features, last.layer.in_features)
    if gates is None or gates.shape != torch.Size(shape):
        held = "no gates" if gates is None else f"gates of shape {tuple(gates.shape)}"
        raise WrongWeights(f"--csg {path} holds {held}; give a checkpoint with the key csg, of shape {shape}")
    context.stage.inherit(path, path.read_bytes())
    network = context.new_network()
    weights.load_network(network, state, path)
    assert isinstance(last.model, Classifier)
    mean, std = (getattr(last.model.normalize, key).flatten().tolist() for key in ("mean", "std"))
    info(f"CSG: {path}, its own network and gates, normalised as the base model is")
    model = context.place(Classifier(network, mean, std))
    return LastLayer(model, last.data, last.batch_size, last.amp, last.cache), gates
