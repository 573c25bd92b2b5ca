"""The models that stages hand to each other: the base, what correct left, and copies with a patch applied."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path

from torch import Tensor

from deeppatch.artifacts import state_digest, tensors_from_bytes
from deeppatch.cli.context import Context
from deeppatch.errors import OtherBase, WrongWeights
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.progress import info
from deeppatch.zoo import weights
from deeppatch.zoo.classifier import Classifier


def base_model(context: Context) -> Classifier:
    """Load the model that pretrain left, or --weights; later stages start from it."""
    path = context.options.weights or context.folder("pretrain") / "weights.safetensors"
    if context.options.weights:
        state = weights.read(path)
        context.stage.inherit(path, path.read_bytes())
    else:
        state, _ = tensors_from_bytes(context.stage.read(path, context.command("pretrain")), path)
    model = restore(context, state, path)
    info(f"inherited {path} (base {state_digest(model.state_dict())[:12]})")
    return model


def restore(context: Context, state: dict[str, Tensor], origin: Path) -> Classifier:
    """Build the classifier whose state dict a stage left."""
    if not {"normalize.mean", "normalize.std"} <= state.keys():
        command = f"{context.command('pretrain')} --weights {shlex.quote(str(origin))}"
        raise WrongWeights(f"{origin} carries no normalisation; pass it through: {command}")
    mean, std = (state[f"normalize.{key}"].flatten().tolist() for key in ("mean", "std"))
    network = context.new_network()
    own = {k.removeprefix("network."): v for k, v in state.items() if not k.startswith("normalize.")}
    weights.load_network(network, own, origin)
    return context.place(Classifier(network, mean, std))


def load_patch(context: Context, model: Classifier) -> Patch:
    """Read the patch that correct left for these options, trained on `model`."""
    path, command = context.locate("correct", "patch.safetensors")
    patch = Patch.from_bytes(context.stage.read(path, command), path)
    if patch.base != state_digest(model.state_dict()):
        raise OtherBase(path, command)
    count = sum(map(len, patch.channels.values()))
    info(f"inherited {path} ({patch.kind}, {count} filters in {len(patch.channels)} layers)")
    return patch


def load_finetuned(context: Context, model: Classifier) -> Classifier:
    """Read the network that correct -c finetune left, made from `model`."""
    path, command = context.locate("correct", "weights.safetensors", crt_method="finetune")
    state, meta = tensors_from_bytes(context.stage.read(path, command), path)
    if meta.get("base") != state_digest(model.state_dict()):
        raise OtherBase(path, command)
    tuned = restore(context, state, path)
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
        return patched_copy(context, model, load_patch(context, model))
    return load_finetuned(context, model)
