"""The sets of features that options name: those that influence left, given files, and those of class-specific gates."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from deeppatch.artifacts import read_given
from deeppatch.cli.context import Context
from deeppatch.cli.features import Subject
from deeppatch.decompose import index_sets
from deeppatch.errors import WrongWeights
from deeppatch.progress import info
from deeppatch.zoo import weights
from deeppatch.zoo.classifier import Classifier

LOWEST, HIGHEST = "CSG, lowest gates (as published)", "CSG, highest gates"


def named_sets(context: Context, model: Subject) -> dict[str, Tensor]:
    """Return indices (C, k) by name: the files of -i, or else what influence left for each -k."""
    classes, width = len(context.source.classes), model.whole.in_features
    found: dict[str, Tensor] = {}
    for path in context.options.indices or []:
        content = read_given(path)
        name = path.stem if path.stem not in found else str(path)
        found[name] = index_sets.parse(content, path, classes, width)
        context.stage.inherit(path, content)
    if found:
        return found
    for k in context.options.k:
        path, command = context.locate("influence", "indices.json", k=k, augment=False)
        content = context.stage.read(path, command)
        found[f"influence, k={k}"] = index_sets.parse(content, path, classes, width)
        info(f"inherited {path}")
    return found


def gates(context: Context, model: Subject, path: Path) -> tuple[Subject, Tensor]:
    """Return the network that was trained with class-specific gates, and the gates (C, D), of the checkpoint --csg."""
    state = dict(weights.read(path))
    found = state.pop("csg", None)
    shape = (model.whole.out_features, model.whole.in_features)
    if found is None or found.shape != torch.Size(shape):
        held = "no gates" if found is None else f"gates of shape {tuple(found.shape)}"
        raise WrongWeights(f"--csg {path} holds {held}; give a checkpoint with the key csg, of shape {shape}")
    context.stage.inherit(path, path.read_bytes())
    network = context.new_network()
    weights.load_network(network, state, path)
    mean, std = (getattr(model.model.normalize, key).flatten().tolist() for key in ("mean", "std"))
    info(f"CSG: {path}, its own network and gates, normalised as the base model is")
    return Subject(context, context.place(Classifier(network, mean, std))), found


def gate_sets(found: Tensor, k: int) -> dict[str, Tensor]:
    """Return the sets of the k lowest and of the k highest gates, by name."""
    return {name: index_sets.from_gates(found, k, highest=high) for name, high in ((LOWEST, False), (HIGHEST, True))}
