"""compose --assemble: read models that were split, and report on the classifier that is made of their modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from deeppatch.artifacts import tensors_from_bytes
from deeppatch.cli.compose.inputs import TUNED
from deeppatch.cli.context import Context
from deeppatch.cli.locating import BASE, locate
from deeppatch.cli.predecessors import check_classes, restore
from deeppatch.errors import MissingArtifact, OtherBase, StaleArtifact, UserError
from deeppatch.modular.assembling import AssembledClassifier, SplitModel
from deeppatch.modular.modules import Modules
from deeppatch.patching.export import classifier_onnx
from deeppatch.progress import info
from deeppatch.storage import read_given, read_record, sha256
from deeppatch.zoo import weights
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.resolve import resolve

FROM_SCRATCH = "trained for these data"


def split_models(context: Context, folders: Sequence[Path]) -> list[SplitModel]:
    """Return the models of which modularize left modules in these folders; called by their numbers and networks."""
    return [_split_model(context, number, folder) for number, folder in enumerate(folders, 1)]


def _split_model(context: Context, number: int, folder: Path) -> SplitModel:
    record = read_record(folder) if folder.is_dir() else None
    if not record or record.get("stage") != "modularize":
        raise UserError(f"{folder} was not left by modularize; give folders of finished runs of it with --assemble")
    settings, path, again = record["settings"], folder / "modules.safetensors", str(record.get("command"))
    content = read_given(path)
    if sha256(content) != record["outputs"].get(path.name):
        raise StaleArtifact(f"{path} is damaged or was changed by hand; make it again with: {again}")
    base, digest = folder / TUNED, record["outputs"].get(TUNED)
    if digest is None:
        read = record["consumed"]["base"]
        base, digest = folder.resolve().parent.parent.parent / read["file"], read["sha256"]
    base_content = read_given(base)
    if sha256(base_content) != digest:
        raise OtherBase(path, again)
    for each, found in ((path, content), (base, base_content)):
        context.stage.inherit(each, found)
    state, meta = tensors_from_bytes(base_content, base)
    if not meta.get("classes"):
        raise UserError(f"{base} does not name its classes; pass it through pretrain --weights, and split it again")
    size = [*context.source.test.pixels.shape[-2:]]
    if meta.get("image_size", size) != size:
        raise UserError(f"{folder} is of a model for images of another size: {meta['image_size']} there, {size} here")
    network = resolve(settings["model"], settings.get("image_size")).build(len(meta["classes"]))
    weights.load_network(network, weights.network_state(state), base)
    normalisation = weights.saved_normalisation(state, base)
    assert normalisation is not None  # what pretrain left
    model = context.place(Classifier(network, *normalisation, classes=meta["classes"]))
    name = f"{number} {settings['model']} on {settings['dataset']}"
    info(f"inherited {path} ({len(meta['classes'])} modules of {name})")
    data = settings["dataset"].partition(":")[0]
    return SplitModel(model, Modules.from_bytes(content, path), meta["classes"], name, data, settings["model"])


def trained_for_the_task(context: Context) -> dict[str, nn.Module]:
    """Return the network that pretrain left for these data, where there is one."""
    try:
        found = locate(BASE, context.options)
    except MissingArtifact as missing:
        info(f"no network was trained for these data, to compare with: {missing}")
        return {}
    except UserError as several:
        info(f"no network for these data is compared: {several}")
        return {}
    content = read_given(found.path)
    state, meta = tensors_from_bytes(content, found.path)
    check_classes(context, meta, found.path)
    context.stage.inherit(found.path, content)
    info(f"inherited {found.path} ({FROM_SCRATCH})")
    return {FROM_SCRATCH: restore(context, state, found.path)}


def report(context: Context, assembled: AssembledClassifier, table: pd.DataFrame) -> None:
    """Write the classifier, the tables of its modules and of what it is compared with, and print both."""
    stage, options = context.stage, context.options
    assert assembled.table is not None
    stage.write("assembled.safetensors", assembled.to_bytes())
    stage.write_table("modules.csv", assembled.table)
    stage.write_table("table.csv", table)
    if options.onnx:
        stage.write("assembled.onnx", classifier_onnx(assembled, context.example))
    facts: dict[str, Any] = {
        "dataset": context.source.name,
        "classes": list(context.source.classes),
        "test_images": len(context.data.test),
        "limit": options.limit,
        "accuracy_percent": dict(zip(table["network"], table["accuracy"], strict=True)),
        "origins": [asdict(each) for each in assembled.origins],
        "kernels_kept_percent": float(assembled.table.loc[assembled.table["chosen"], "kernels_kept"].mean()),
        "f1_percent": float(assembled.table.loc[assembled.table["chosen"], "f1"].mean()),
    }
    stage.write_json("metrics.json", facts)
    stage.finish()
    print(assembled.table.to_string(index=False, float_format="%.1f"))
    print(f"\n{table.to_string(index=False, float_format='%.2f')}")
    info(f"accuracy in percent on {len(context.data.test)} test images; written to {stage.folder}")
