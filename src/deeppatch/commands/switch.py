"""evaluate: fit a router on val, switch on the fly on test, and compare with every other network at hand."""

from __future__ import annotations

import argparse
import contextlib

import torch
from torch import Tensor, nn

from deeppatch import options as command_line
from deeppatch import runtime
from deeppatch.artifacts import tensors_to_bytes
from deeppatch.commands.calibrate import calibrate
from deeppatch.commands.context import Context, open_stage
from deeppatch.commands.corrected import load_finetuned, load_patch, patched_copy
from deeppatch.commands.measure import right_by_level
from deeppatch.commands.verdict import Answers, Routing, write_report
from deeppatch.data import views
from deeppatch.errors import MissingArtifact
from deeppatch.patching.router import ROUTERS
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import info, track
from deeppatch.training import predict
from deeppatch.zoo.classifier import Classifier

STAGE = "evaluate"
DESCRIPTION = "Evaluate: route each sample to the original or the patched maps, and compare with the other networks."
EXAMPLE = "-m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone."""
    group = parser.add_argument_group("evaluate")
    group.add_argument("--router", choices=sorted(ROUTERS), default="probe",
                       help="what decides: probe, a logistic regression on the first maps, or flips, as published "
                            "(default: probe)")
    group.add_argument("--switch", choices=["sample", "batch"], default="sample",
                       help="one decision for each sample, or the published majority vote of a batch (default: sample)")
    group.add_argument("--max_clean_drop", type=float, default=0.1, metavar="P",
                       help="probe: bound on the loss of clean accuracy, in points, shown on val with 95 %% confidence "
                            "(default: 0.1)")
    parser.set_defaults(problems=problems)


def problems(options: argparse.Namespace) -> list[str]:
    """Return what is wrong with this stage's own options."""
    found = []
    if options.crt_method != "patch":
        found.append(f"-c {options.crt_method} cannot be switched: use -c patch here; a fine-tuned network is compared where it is")
    if not 0 <= options.max_clean_drop <= 100:
        found.append(f"--max_clean_drop {options.max_clean_drop}: give points from 0 to 100")
    return found


def run(options: argparse.Namespace) -> None:
    """Calibrate the router, evaluate everything on test, and leave router, metrics, table and plot."""
    name = f"switch-{command_line.patch_name(options)}-{options.router}"
    context = open_stage(options, name + ("-batch" if options.switch == "batch" else ""))
    model = context.base_model()
    patch = load_patch(context)
    tuned = finetuned_if_there(context)
    if context.already_finished():
        return
    switched = SwitchedModel(model, patch, context.example)
    switched.vote = options.switch == "batch"
    patched = patched_copy(context, model, patch)
    switched.router, calibration = calibrate(context, model, patched, switched)

    networks = {"pretrained": model, "finetuned": tuned, "patched always on": patched}
    answers = {name: answer(context, network, name) for name, network in networks.items() if network is not None}
    answers["switched"], routing = answer_switched(context, switched)
    answers["oracle router"] = oracle(context, answers["pretrained"], answers["patched always on"])
    write_report(context, answers, routing, calibration)
    context.stage.write("router.safetensors", tensors_to_bytes(switched.router.state_dict(), {"kind": options.router}))
    context.stage.finish()
    info(f"accuracy in percent on {len(context.splits.test)} test images; written to {context.stage.folder}")


def finetuned_if_there(context: Context) -> Classifier | None:
    """Return the fine-tuned network where correct has left one for this model, else None."""
    with contextlib.suppress(MissingArtifact):
        return load_finetuned(context)
    info(f"no fine-tuned network to compare with; make one with: {context.command('correct', crt_method='finetune')}")
    return None


def mixed_stream(context: Context) -> views.View:
    """Return the test images shuffled, every second one degraded at a drawn level."""
    options = context.options
    return views.mixed_stream(context.splits.test, context.blur, options.batch_size, options.seed)


def answer(context: Context, model: nn.Module, name: str) -> Answers:
    """Return which test images a network gets right."""
    mixed = mixed_stream(context)
    by_level = right_by_level(context, model, context.splits.test, f"{name}, levels")
    in_stream = predict(model, mixed, amp=context.options.amp, label=f"{name}, mixed") == mixed.labels
    return Answers(by_level, in_stream)


@torch.inference_mode()
def answer_switched(context: Context, switched: SwitchedModel) -> tuple[Answers, Routing]:
    """Return which test images the switched model gets right, and how it routed each level."""
    options, test = context.options, context.splits.test
    rows = []
    for level in range(len(context.sigmas) + 1):
        view = views.levels_view(test, context.blur, [level], options.batch_size)
        rows.append(_route_all(context, switched, view, f"switched, level {level}"))
    right, scores, moved = (torch.stack(parts) for parts in zip(*rows, strict=True))
    in_stream, _, _ = _route_all(context, switched, mixed_stream(context), "switched, mixed")
    return Answers(right, in_stream), Routing(scores, moved)


def _route_all(context: Context, switched: SwitchedModel, view: views.View, label: str) -> tuple[Tensor, ...]:
    rows = []
    for pixels, labels in track(view, len(view), label):
        with runtime.autocast(context.device, context.options.amp):
            logits, scores, moved = switched.route(pixels)
        rows.append((logits.argmax(1) == labels, scores, moved))
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


def oracle(context: Context, original: Answers, patched: Answers) -> Answers:
    """Return what a router that knows which samples are degraded would get right: the ceiling."""
    by_level = torch.cat([original.by_level[:1], patched.by_level[1:]])
    degraded = mixed_stream(context).levels > 0
    return Answers(by_level, torch.where(degraded, patched.in_stream, original.in_stream))
