"""export: write the patched and the original path and the router as ONNX and as a torch.export program."""

from __future__ import annotations

import argparse
import importlib.metadata

from deeppatch.cli.context import Context, open_stage
from deeppatch.cli.evaluate.answers import mixed_stream
from deeppatch.cli.predecessors import base_model, load_patch
from deeppatch.data import views
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.patching import export
from deeppatch.patching.router import ROUTERS, Router
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import info, track

STAGE = "export"
DESCRIPTION = "Export: the original and the patched network and the router, to run without this package."
EXAMPLE = "-m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
PARTS = ("original.onnx", "patched.onnx", "router.onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone."""
    group = parser.add_argument_group("export")
    group.add_argument(
        "--router",
        choices=sorted(ROUTERS),
        default="probe",
        help="which of the routers that evaluate left decides for each sample (default: probe)",
    )
    parser.set_defaults(problems=problems)


def problems(options: argparse.Namespace) -> list[str]:
    """Return what is wrong with this stage's own options."""
    found = []
    if options.crt_method != "patch":
        found.append(f"-c {options.crt_method} has no two paths to export: use -c patch")
    if options.amp:
        found.append("--amp: what is exported computes in float32; leave it out")
    return found


def run(options: argparse.Namespace) -> None:
    """Export everything, run it on the test images against the switched model, and leave what that found."""
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
    forms = {
        "onnx": export.loaded_onnx(*(files[name] for name in PARTS)),
        "switched.pt2": export.loaded_program(files["switched.pt2"]),
    }
    test = context.splits.test
    found = {}
    for view, batches in {"clean": views.clean(test, options.batch_size), "mixed": mixed_stream(context)}.items():
        agreements = export.compare(switched, forms, track(batches, len(batches), f"comparing, {view}"))
        found[view] = {name: agreement.facts() for name, agreement in agreements.items()}
    report(found)
    context.stage.write_json(
        "metrics.json",
        {
            "router": options.router,
            "test_images": len(test),
            "limit": options.limit,
            "against_switched_model": found,
            "versions": versions,
        },
    )
    context.stage.finish()
    info(f"written to {context.stage.folder}")


def installed() -> dict[str, str]:
    """Return the versions of the packages that only this stage needs; UserError where one is missing."""
    try:
        return {name: importlib.metadata.version(name) for name in NEEDED}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"export needs {error.name}; install it with: pip install 'deeppatch[export]'") from error


def load_router(context: Context) -> Router:
    """Read the router that evaluate left for these options."""
    path, command = context.locate("evaluate", "router.safetensors")
    router = Router.from_bytes(context.stage.read(path, command), path)
    if router.kind != context.options.router:
        raise StaleArtifact(f"{path} holds a router of kind {router.kind}; make it again with: {command}")
    info(f"inherited {path} ({router.kind})")
    return router.to(context.device)


def report(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print how far each form agrees with the switched model."""
    for view, forms in found.items():
        for name, facts in forms.items():
            same = f"same class {facts['argmax_agreement_percent']:.2f} %"
            logits = f"logits differ by at most {facts['max_logit_difference']:.1e} (largest {facts['max_logit']:.1f})"
            routed = f"{facts['images_routed_differently']} of {facts['images']} images routed differently"
            info(f"{view}: {name}: {same}, {logits}, {routed}, {facts['images_switched']} switched")
