"""The models that stages hand to each other: the base, what correct left, and copies with a patch applied."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from deeppatch import options as command_line
from deeppatch.artifacts import read_given, state_digest, tensors_from_bytes
from deeppatch.commands.context import Context
from deeppatch.errors import WrongWeights
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.progress import info
from deeppatch.zoo import weights
from deeppatch.zoo.classifier import Classifier


def base_model(context: Context) -> Classifier:
    """Load the model that pretrain left, or --weights; later stages start from it."""
    path = context.options.weights or context.folder("pretrain") / "weights.safetensors"
    if context.options.weights:
        content = read_given(path)
        context.stage.inherit(path, content)
    else:
        content = context.stage.read(path, context.command("pretrain"))
    model = restore(context, content, path)
    info(f"inherited {path} (base {state_digest(model.state_dict())[:12]})")
    return model


def restore(context: Context, content: bytes, origin: Path) -> Classifier:
    """Build the classifier whose safetensors bytes a stage left."""
    state, _ = tensors_from_bytes(content, origin)
    if "normalize.mean" not in state:
        raise WrongWeights(
            f"{origin} carries no normalisation; pass it through: {context.command('pretrain')} --weights {origin}"
        )
    mean, std = (state.pop(f"normalize.{key}").flatten().tolist() for key in ("mean", "std"))
    network = context.new_network()
    weights.load_network(network, {key.removeprefix("network."): value for key, value in state.items()}, origin)
    return context.place(Classifier(network, mean, std))


def load_patch(context: Context) -> Patch:
    """Read the patch that correct left for these options."""
    path = context.folder(f"correct-{command_line.patch_name(context.options)}") / "patch.safetensors"
    patch = Patch.from_bytes(context.stage.read(path, context.command("correct")), path)
    count = sum(map(len, patch.channels.values()))
    info(f"inherited {path} ({patch.kind}, {count} filters in {len(patch.channels)} layers)")
    return patch


def load_finetuned(context: Context) -> Classifier:
    """Read the network that correct -c finetune left for this model."""
    tuning = argparse.Namespace(**{**vars(context.options), "crt_method": "finetune"})
    path = context.folder(f"correct-{command_line.patch_name(tuning)}") / "weights.safetensors"
    tuned = restore(context, context.stage.read(path, command_line.spell("correct", tuning)), path)
    info(f"inherited {path}")
    return tuned


def patched_copy(context: Context, model: Classifier, patch: Patch) -> Classifier:
    """Return a copy of a model with a patch applied."""
    patched = copy.deepcopy(model)
    apply(patched, patch, context.example)
    return patched


def load_corrected(context: Context, model: Classifier) -> Classifier:
    """Return the corrected model that the options name; the base model is left as it was."""
    if context.options.crt_method == "patch":
        return patched_copy(context, model, load_patch(context))
    return load_finetuned(context)
