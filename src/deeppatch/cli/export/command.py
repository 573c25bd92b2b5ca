"""export: write the original and the patched network and the router as ONNX and as a torch.export program."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from deeppatch.cli.declared import Folder
from deeppatch.cli.options import RepairOptions
from deeppatch.patching.names import READ_ANSWERS, ROUTERS

STAGE = "export"
DESCRIPTION = "Export: the original and the patched network and the router, to run without this package."
EXAMPLE = "-m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace"
ARTIFACTS = (
    Folder(
        "export-CORRECTION-ROUTER",
        "networks and router as files that run without this package",
        {
            "original.onnx": "the base model, from pixels to logits",
            "patched.onnx": "the patched model, from pixels to logits",
            "router.onnx": "the router, from pixels to score and decision",
            "switched.pt2": "the switched model as a torch.export program",
            "metrics.json": "how far the files agree with the switched model on test, and versions of packages",
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(RepairOptions):
    """The options of export: the router."""

    router: str = "probe"
    switched: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage."""
    group = parser.add_argument_group("export")
    group.add_argument(
        "--router",
        choices=sorted(set(ROUTERS) - set(READ_ANSWERS)),
        default="probe",
        help="the router of evaluate that decides for each sample; those that read the answers of both networks are "
        "not exported (default: probe)",
    )
    group.add_argument(
        "--switched", type=Path, metavar="FILE", help="a router.safetensors to use instead of the one from evaluate"
    )


def problems(options: Options) -> list[str]:
    """Return the problems with this stage's own options."""
    messages = []
    if options.crt_method != "patch":
        messages.append(f"-c {options.crt_method} has no two paths to export: use -c patch")
    if options.amp:
        messages.append("--amp: exported networks compute in float32; leave it out")
    return messages


def run(options: Options) -> None:
    """Export the networks, compare them with the switched model on the test images, and write the results."""
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.export.inputs import installed, load_router
    from deeppatch.cli.export.report import write_report
    from deeppatch.cli.predecessors import base_model, load_patch
    from deeppatch.data import views
    from deeppatch.patching import export
    from deeppatch.patching.switched import SwitchedModel
    from deeppatch.progress import info

    versions = installed()
    context = open_stage(options, STAGE)
    model = base_model(context)
    patch = load_patch(context, model)
    router = load_router(context)
    if context.already_finished():
        return
    switched = SwitchedModel(model, patch, context.example, router)
    files = {}
    for name, content in export.export(model, patch, switched, context.example):
        files[name] = content
        info(f"{context.stage.write(name, content)}: {len(content) / 1e6:.2f} MB")
    exported = export.load_exported(files)
    test = context.data.test
    agreements = {
        "clean": export.compare(switched, exported, views.clean(test, options.batch_size), label="comparing, clean"),
        "mixed": export.compare(
            switched,
            exported,
            views.mixed_stream(test, context.corruption, options.batch_size, options.seed),
            label="comparing, mixed",
        ),
    }
    write_report(context, agreements, versions)
