"""The inputs of evaluate besides the model: corrections, the images to calibrate on, and a router, given or fitted."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from deeppatch.artifacts import state_digest, tensors_from_bytes
from deeppatch.cli.context import Context
from deeppatch.cli.evaluate.report import show_calibration
from deeppatch.cli.predecessors import check_classes, given_or_read, load_finetuned, load_patch, restore
from deeppatch.data.corruptions import Corruption, own_images
from deeppatch.data.dataset import Data
from deeppatch.data.files import Files
from deeppatch.data.folders import list_classes
from deeppatch.data.images import Images
from deeppatch.errors import DataProblem, MissingArtifact, OtherBase, StaleArtifact, UserError
from deeppatch.neighbours import robust_accuracy
from deeppatch.patching.calibration import Experts, classifiers, fit_switch, switch_between
from deeppatch.patching.comparison import ALWAYS, FINETUNED, PRETRAINED, SWITCHED
from deeppatch.patching.patch_file import Patch
from deeppatch.patching.router import Router
from deeppatch.patching.seen import Seen, apart, compare_seen
from deeppatch.patching.switch import Switch
from deeppatch.progress import info
from deeppatch.storage import read_given
from deeppatch.zoo.classifier import Classifier

FINETUNE = "finetune"


def corrections(context: Context, model: Classifier) -> Experts:
    """Return what is switched to: the patch or the network that -c names, and what --experts names beside it."""
    method = context.options.crt_method
    if method == "patch" and not context.options.experts:
        return load_patch(context, model)
    found: dict[str, Patch | nn.Module] = {}
    if method == "patch":
        found["patched"] = load_patch(context, model)
    else:
        found["finetuned" if method == FINETUNE else method] = load_finetuned(context, model)
    for path in context.options.experts or []:
        name = path.parent.name if path.parent.name not in ("", *found) else f"{path.parent.name}/{path.stem}"
        found[name] = _expert(context, model, path)
    return found


def _expert(context: Context, model: Classifier, path: Path) -> Patch | nn.Module:
    """Read a patch or a whole network that was made from the model."""
    content = read_given(path)
    context.stage.inherit(path, content)
    state, meta = tensors_from_bytes(content, path)
    check_classes(context, meta.get("about", meta), path)
    if meta.get("base") != state_digest(model.state_dict()):
        raise OtherBase(path, context.command("correct"))
    info(f"inherited {path}")
    return Patch.from_bytes(content, path) if "kind" in meta else restore(context, state, path)


def finetuned_to_compare(context: Context, model: Classifier) -> nn.Module | None:
    """Return the fine-tuned network of this model to compare with if there is one, else None."""
    if context.options.crt_method != "patch":
        return None  # the network that is switched to is among those compared
    found = context.found.get("finetuned")
    if found and found.given:
        return load_finetuned(context, model)
    with contextlib.suppress(MissingArtifact, OtherBase):
        return load_finetuned(context, model)
    info(f"no fine-tuned network to compare with; make one with: {context.command('correct', crt_method=FINETUNE)}")
    return None


def calibration_images(context: Context) -> tuple[Data, Images | None]:
    """Return the data without test images that calibrate, and the images to calibrate on, None for val."""
    kind, _, detail = context.options.calibrate_on.partition(":")
    data = context.data
    if kind == "val":
        return data, None
    if kind == "folder":
        return data, _labelled(context, Path(detail))
    count, total = int(detail), len(data.test)
    if count >= total:
        raise UserError(f"--calibrate_on test:{count}: there are {total} test images; leave some to measure with")
    for degrade in filter(None, (context.corruption, context.held_out)):
        _check_split(degrade, data.test)
    chosen, left = apart(data.test, count, context.options.seed)
    info(f"calibrating on {count} test images; everything reported is of the other {total - count}")
    return replace(data, test=left), chosen


def _check_split(degrade: Corruption, test: Images) -> None:
    if any(own_images(degrade, level, test) is not None for level in range(1, len(degrade) + 1)):
        raise UserError(
            "--calibrate_on test:N: degraded images that belong to no clean ones cannot be divided as these; use "
            "folder:PATH"
        )


def _labelled(context: Context, folder: Path) -> Images:
    """Read FOLDER/CLASS/IMAGE, in the size and with the classes of the data."""
    if not folder.is_dir():
        raise DataProblem(f"{folder}: no such folder; --calibrate_on folder:PATH names one with PATH/CLASS/IMAGE")
    listed = list_classes(folder)
    classes = list(context.source.classes)
    if other := sorted(set(listed.classes) - set(classes)):
        raise DataProblem(f"{folder} has classes that the data have not: {', '.join(other[:4])}; remove these folders")
    labels = torch.tensor([classes.index(listed.classes[label]) for label in listed.labels])
    images = Images(Files(listed.paths, context.scaling)[:], labels).to(context.device)
    info(f"calibrating on {len(images)} images in {folder}")
    return images


def switched_model(
    context: Context, model: Classifier, corrected: Experts, data: Data, calibrate: Images | None
) -> tuple[Switch, Seen | None]:
    """Return the model with its router, fitted or as given, and whether the network has seen the calibration images."""
    options = context.options
    if options.router_file is not None:
        switched = switch_between(model, corrected, context.example)
        switched.router = _given_router(context, switched)
        switched.vote = options.switch == "batch"
        return switched, None
    batches = {"batch_size": options.batch_size, "amp": options.amp}
    seen = None
    if not options.calibrate_on.startswith("test:"):
        seen = compare_seen(model, data.val if calibrate is None else calibrate, data.test, **batches)
    switched = fit_switch(
        model,
        corrected,
        data,
        context.corruption,
        router=options.router,
        max_clean_drop=options.max_clean_drop,
        max_flips=options.max_flips,
        calibrate=calibrate,
        alarm=options.alarm,
        vote=options.switch == "batch",
        **batches,
    )
    show_calibration(switched.calibration, options.calibrate_on, seen)
    return switched, seen


def neighbours(
    context: Context, model: Classifier, corrected: Experts, switched: Switch, tuned: nn.Module | None
) -> pd.DataFrame:
    """Return the shares of right neighbours of all networks that evaluate compares."""
    options = context.options
    others = classifiers(model, corrected, context.example)
    others = {ALWAYS: others["patched"]} if isinstance(corrected, Patch) else others
    networks = {PRETRAINED: model, FINETUNED: tuned, **others, SWITCHED: switched}
    return robust_accuracy(
        {name: network for name, network in networks.items() if network is not None},
        context.data.test,
        context.corruption,
        options.neighbours,
        batch_size=options.batch_size,
        amp=options.amp,
    )


def _given_router(context: Context, switched: Switch) -> Router:
    """Read the router that an option names; StaleArtifact where it is known to be for another patch."""
    found = context.found["router"]
    router = Router.from_bytes(given_or_read(context, found), found.path)
    used = [each.digest for name, each in context.found.items() if name in ("patch", "finetuned")]
    if found.record and not set(used) & set(found.record["inputs"].values()):
        raise StaleArtifact(f"{found.path} was fitted for another correction than the one at hand; give its own")
    router = router.to(context.device)
    switched.router = router
    try:
        with torch.no_grad():
            switched.answer(context.example)
    except RuntimeError as error:  # other numbers of features
        raise StaleArtifact(f"{found.path} was fitted for other networks than those at hand; give its own") from error
    info(f"inherited {found.path} ({router.kind})")
    return router
