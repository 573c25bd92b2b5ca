"""The models that stages hand to each other: the base, what correct left, and copies with a patch applied."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deeppatch.artifacts import state_digest, tensors_from_bytes
from deeppatch.cli.context import Context
from deeppatch.cli.locating import Found
from deeppatch.errors import MissingArtifact, OtherBase, WrongWeights
from deeppatch.evaluation import check_classifier
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.progress import info
from deeppatch.retrain.bank import Bank
from deeppatch.storage import read_given
from deeppatch.zoo import weights
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.normalisation import FROM_FILE, NONE, choose_normalisation


def base_model(context: Context) -> Classifier:
    """Load the model that pretrain left, or --base; later stages start from it."""
    found = context.found["base"]
    if found.given:
        state, meta = weights.read(found.path, context.new_network), metadata(found.path)
        context.stage.inherit(found.path, found.path.read_bytes())
    else:
        state, meta = tensors_from_bytes(context.stage.read(found.path, found.command), found.path)
    check_classes(context, meta, found.path)
    model = restore(context, state, found.path)
    if found.given:  # what pretrain has left, it has checked
        check_classifier(model, context.example, len(context.source.classes))
    info(f"inherited {found.path} (base {state_digest(model.state_dict())[:12]})")
    return model


def metadata(path: Path) -> dict[str, Any]:
    """Return what a given weights file says of its classes and images; nothing where it is no file of ours."""
    if path.suffix != ".safetensors":
        return {}
    return tensors_from_bytes(path.read_bytes(), path)[1]


def check_classes(context: Context, meta: Mapping[str, Any], path: Path) -> None:
    """Raise WrongWeights where a file was made for other classes, or for images of another size; both are named.

    Where a file does not say and classes are ordered as numbers, the other order that it may have is logged.
    """
    about = context.about
    as_numbers = all(map(str.isdecimal, about["classes"])) and about["classes"] != sorted(about["classes"])
    if as_numbers and not meta.get("classes") and context.options.dataset.startswith("folder:"):
        info(
            f"{path} does not name its classes; here they are ordered as numbers ({', '.join(about['classes'][:4])}, "
            "...), while torchvision's ImageFolder orders them as text: check that the file has this order"
        )
    for name, difference in (("classes", "other classes"), ("image_size", "images of another size")):
        before, now = meta.get(name), about[name]
        if before is not None and before != now:
            reordered = name == "classes" and sorted(before) == sorted(now)
            what = "the same classes in another order (numbers are ordered as numbers)" if reordered else difference
            then, now = (", ".join(map(str, each[:8])) + (", ..." if len(each) > 8 else "") for each in (before, now))
            raise WrongWeights(
                f"{path} was made for {what}: {then} there, {now} in {context.source.name}; give the data "
                "that it was made for, or make it again"
            )


def restore(context: Context, state: dict[str, Tensor], origin: Path) -> Classifier:
    """Build the classifier whose state dict a stage left."""
    if any(name.startswith("channels/") for name in state):
        raise WrongWeights(f"{origin} is a patch, not the weights of a network; give it with --patch")
    normalisation = choose_normalisation(
        saved=weights.saved_normalisation(state, origin),
        entry=context.architecture.published.get(context.options.dataset),
        library=context.architecture.normalisation,
    )
    if normalisation.origin == NONE:
        command = f"{context.command('pretrain')} --weights {shlex.quote(str(origin))}"
        raise WrongWeights(
            f"{origin} carries no normalisation; give the weights.safetensors with one, which this leaves: {command}"
        )
    if normalisation.origin != FROM_FILE:
        info(f"{origin} carries no normalisation: taken as {normalisation.origin}")
    network = context.new_network()
    weights.load_network(network, weights.network_state(state), origin)
    return context.place(Classifier(network, normalisation.mean, normalisation.std))


def load_patch(context: Context, model: Classifier) -> Patch:
    """Read the patch that correct left for these options, trained on `model`."""
    found = context.found["patch"]
    path, command = found.path, found.command
    patch = Patch.from_bytes(given_or_read(context, found), path)
    check_classes(context, patch.about, path)
    if patch.base != state_digest(model.state_dict()):
        raise OtherBase(path, command)
    count = sum(map(len, patch.channels.values()))
    info(f"inherited {path} ({patch.kind}, {count} filters in {len(patch.channels)} layers)")
    return patch


def given_or_read(context: Context, found: Found) -> bytes:
    """Return the content of a file that an option names, or of one that an earlier stage has left, which is checked."""
    if not found.given:
        return context.stage.read(found.path, found.command)
    content = read_given(found.path)
    context.stage.inherit(found.path, content)
    return content


def load_finetuned(context: Context, model: Classifier) -> nn.Module:
    """Read the network that correct -c finetune, or another correction of the whole network, left for `model`."""
    found = context.found.get("finetuned")
    if found is None:
        raise MissingArtifact(*context.locate("correct", "weights.safetensors", crt_method="finetune"))
    path, command = found.path, found.command
    content = given_or_read(context, found)
    state, meta = tensors_from_bytes(content, path)
    check_classes(context, meta, path)
    if meta.get("base") != state_digest(model.state_dict()):
        raise OtherBase(path, command)
    info(f"inherited {path}")
    return Bank.from_bytes(content, path).apply(model) if "bank" in meta else restore(context, state, path)


def patched_copy(context: Context, model: nn.Module, patch: Patch) -> nn.Module:
    """Return a copy of a model with a patch applied."""
    patched = copy.deepcopy(model)
    apply(patched, patch, context.example)
    return patched


def load_corrected(context: Context, model: Classifier) -> nn.Module:
    """Return the corrected model that the options name; the base model is left as it was."""
    if context.options.crt_method == "patch":
        return patched_copy(context, model, load_patch(context, model))
    return load_finetuned(context, model)
