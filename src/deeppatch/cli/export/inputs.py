"""The inputs of export: the router of evaluate, and the versions of the packages that it needs."""

from __future__ import annotations

import importlib.metadata

from deeppatch.cli.context import Context
from deeppatch.cli.predecessors import given_or_read
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.patching.router import Router
from deeppatch.progress import info

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def installed() -> dict[str, str]:
    """Return the versions of the packages that only this stage needs; UserError when one is missing."""
    try:
        return {name: importlib.metadata.version(name) for name in NEEDED}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"export needs {error.name}; install it with: pip install 'deeppatch[export]'") from error


def load_router(context: Context) -> Router:
    """Read the router of evaluate for these options."""
    found = context.found["router"]
    path, command = found.path, found.command
    router = Router.from_bytes(given_or_read(context, found), path)
    if found.record and context.found["patch"].digest not in found.record["inputs"].values():
        raise StaleArtifact(f"{path} was fitted for another patch than {context.found['patch'].path}; give its own")
    if router.kind != context.options.router:
        raise StaleArtifact(f"{path} holds a router of kind {router.kind}; make it again with: {command}")
    info(f"inherited {path} ({router.kind})")
    return router.to(context.device)
