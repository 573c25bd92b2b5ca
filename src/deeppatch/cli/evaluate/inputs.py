"""The inputs of evaluate besides model and patch: the fine-tuned network to compare with."""

from __future__ import annotations

import contextlib

from torch import nn

from deeppatch.cli.context import Context
from deeppatch.cli.predecessors import load_finetuned
from deeppatch.errors import MissingArtifact, OtherBase
from deeppatch.progress import info
from deeppatch.zoo.classifier import Classifier


def finetuned_if_there(context: Context, model: Classifier) -> nn.Module | None:
    """Return the fine-tuned network of this model if there is one, else None."""
    found = context.found.get("finetuned")
    if found and found.given:
        return load_finetuned(context, model)
    with contextlib.suppress(MissingArtifact, OtherBase):
        return load_finetuned(context, model)
    info(f"no fine-tuned network to compare with; make one with: {context.command('correct', crt_method='finetune')}")
    return None
