"""Step 0 of relearn: the model fine-tuned on what it knows, where every repair starts; kept by what it depends on."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes, write_bytes
from deeppatch.cli.context import Context
from deeppatch.cli.decompose.tuning import view_accuracy
from deeppatch.cli.naming import model_folder
from deeppatch.errors import StaleArtifact
from deeppatch.hybrid.semisupervised import repair
from deeppatch.hybrid.training_data import Recipe, SemiSupervisedData
from deeppatch.progress import info
from deeppatch.zoo.classifier import Classifier

FOLDER = "relearn-start"
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


def finetuned(context: Context, model: Classifier, material: SemiSupervisedData, recipe: Recipe) -> Classifier:
    """Return a copy of the model after --epochs of plain cross entropy on the training images that it gets right.

    Accuracy before repair is that of this copy (Li, Chen and Xu, ISSTA 2022). It is kept under a name that hashes all
    it depends on: base weights, training images, seed, settings and device; one that is damaged is made again.
    """
    settings = {
        "base": state_digest(model.state_dict()),
        "train": state_digest({"pixels": material.train.pixels, "labels": material.train.labels}),  # type: ignore[dict-item]
        "device": context.device.type,
        "batch": recipe.batch,
        "steps": recipe.steps,
        **{name: getattr(context.options, name) for name in ("seed", "epochs", "lr", "amp")},
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
    path = model_folder(context.options) / FOLDER / f"{key}.safetensors"
    tuned = copy.deepcopy(model)
    checkpoint = context.checkpoint("checkpoint-start.pt", start=key)
    if not kept(path, tuned):
        repair(
            tuned,
            material.training_images_alone(),
            replace(recipe, smoothing=0.0),
            context.options.epochs,
            view_accuracy(context, context.splits.val),
            watch=lambda _model: {},
            checkpoint=checkpoint,
            label="finetune",
            **training_options(context),
        )
        state = tuned.state_dict()
        write_bytes(path, tensors_to_bytes(state, {**settings, "digest": state_digest(state)}))
    checkpoint.remove()
    context.stage.inherit(path, path.read_bytes())
    info(f"step 0: {path}")
    return tuned


def kept(path: Path, model: nn.Module) -> bool:
    """Load what an earlier run kept into a model, and tell whether it was there, whole."""
    if not path.exists():
        return False
    with contextlib.suppress(StaleArtifact):
        state, meta = tensors_from_bytes(path.read_bytes(), path)
        if meta.get("digest") == state_digest(state):
            model.load_state_dict(state)
            return True
    info(f"{path} is damaged; making it again")
    return False


def training_options(context: Context) -> dict[str, Any]:
    """Return what step 0 and the repair share: the authors' SGD at a constant learning rate."""
    options = context.options
    constants = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    return {**constants, "lr": options.lr, "seed": options.seed, "amp": options.amp}
