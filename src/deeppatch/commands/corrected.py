"""Load what correct left: a patched copy of the base model, or the fine-tuned one."""

from __future__ import annotations

import argparse
import copy

from deeppatch import options as command_line
from deeppatch.commands.context import Context
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.progress import info
from deeppatch.zoo.classifier import Classifier


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
    tuned = context.restore(context.stage.read(path, command_line.spell("correct", tuning)), path)
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
