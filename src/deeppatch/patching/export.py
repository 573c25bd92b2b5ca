"""Export the switched model to files that run without this package: ONNX graphs and a torch.export program."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from deeppatch.distributed.data_parallel import Stream
from deeppatch.errors import UserError
from deeppatch.graph import folding
from deeppatch.graph.tracing import Untraceable
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import track

# maps pixels (N, 3, H, W) to logits (N, classes) and to which samples used the patched network (N,)
ExportedForward = Callable[[Tensor], tuple[Tensor, Tensor]]


class RouterGraph(nn.Module):
    """Maps pixels to the router's scores and decisions, without data-dependent control flow."""

    def __init__(self, switched: SwitchedModel) -> None:
        super().__init__()
        self.switched = switched

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels (N, 3, H, W) in [0, 1] to scores (N,), float64, and which samples are switched (N,)."""
        return self.switched.decide(self.switched.run_stem(pixels)[1])


class SwitchedGraph(nn.Module):
    """Maps pixels to logits, scores and decisions; each sample runs through one network, selected by indices.

    Samples are gathered and their logits scattered even when a network gets none, because a graph has no
    data-dependent control flow. So a batch that uses only one network costs as much as a mixed one.
    """

    def __init__(self, switched: SwitchedModel) -> None:
        super().__init__()
        self.switched = switched

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map pixels (N, 3, H, W) in [0, 1] to logits (N, classes), scores (N,) and which samples are switched (N,)."""
        crossing, maps = self.switched.run_stem(pixels)
        scores, switched = self.switched.decide(maps)
        return self.switched.run_branches(switched, crossing), scores, switched


def export(model: nn.Module, patch: Patch, switched: SwitchedModel, example: Tensor) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each exported file.

    All take pixels (N, 3, H, W) in [0, 1] of the size of `example` for any N from 1 on, and compute in float32 on a
    CPU. original.onnx and patched.onnx are whole networks, router.onnx says which of them to run for a sample;
    switched.pt2 combines all three in one graph, which computes nothing twice.

    Raises:
        UserError: When the network cannot be traced, the router reads the answers of both networks, or the exporter
            refuses them.
    """
    if switched.needed_router().reads_answers:
        raise UserError("a router that reads the answers of both networks is not exported; choose probe or benefit")
    try:
        folding.folded(model)
    except Untraceable as error:
        raise UserError(
            f"this network cannot be exported: {error}; a switched model that torch.fx cannot trace runs in Python only"
        ) from error
    patched = copy.deepcopy(model)
    apply(patched, patch, example)
    whole = copy.deepcopy(switched).cpu().eval()
    blank = torch.zeros_like(example, device="cpu")  # a program contains its example, and no image should be exported
    for name, classifier in (("original.onnx", model), ("patched.onnx", patched)):
        yield name, onnx_bytes(_program(folding.folded(classifier).cpu(), blank), ["logits"])
    yield "router.onnx", onnx_bytes(_program(RouterGraph(whole), blank), ["score", "switched"])
    yield "switched.pt2", program_bytes(_program(SwitchedGraph(whole), blank))


def classifier_onnx(model: nn.Module, example: Tensor) -> bytes:
    """Return a classifier of pixels (N, 3, H, W) in [0, 1], of the size of `example`, as one ONNX file for any N."""
    whole = copy.deepcopy(model).cpu().eval()
    return onnx_bytes(_program(whole, torch.zeros_like(example, device="cpu")), ["scores"])


def onnx_bytes(program: ExportedProgram, outputs: list[str]) -> bytes:
    """Convert a program to one ONNX file with its weights, whose input is called `pixels`."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with _silence_exporters():
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["pixels"], output_names=outputs, external_data=False
        )
    assert exported is not None
    ClearMetadataAndDocStringPass()(exported.model)  # file paths of the source code
    return exported.model_proto.SerializeToString(deterministic=True)


def program_bytes(program: ExportedProgram) -> bytes:
    """Serialise a program for `torch.export.load`."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file paths of the source code
    buffer = io.BytesIO()
    with _silence_exporters():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def load_exported(files: dict[str, bytes]) -> dict[str, ExportedForward]:
    """Load the files that `export` yields, and return functions that run them, by name."""
    parts = (files[f"{name}.onnx"] for name in ("original", "patched", "router"))
    return {"onnx": load_onnx(*parts), "switched.pt2": load_program(files["switched.pt2"])}


def load_onnx(original: bytes, patched: bytes, router: bytes) -> ExportedForward:
    """Load three ONNX files as one function: the router decides, and each sample runs through one network."""
    networks, decide = [_session(original), _session(patched)], _session(router)

    def forward_pass(pixels: Tensor) -> tuple[Tensor, Tensor]:
        _score, switched = decide(pixels)
        logits: Tensor | None = None
        for path, network in enumerate(networks):
            chosen = (switched == bool(path)).nonzero().squeeze(1)
            if len(chosen):
                (values,) = network(pixels[chosen])
                logits = values.new_empty(len(pixels), values.shape[1]) if logits is None else logits
                logits[chosen] = values
        assert logits is not None
        return logits, switched

    return forward_pass


def load_program(content: bytes) -> ExportedForward:
    """Load switched.pt2 as a function."""
    module = torch.export.load(io.BytesIO(content)).module()

    def forward_pass(pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits, _score, switched = module(pixels)
        return logits, switched

    return forward_pass


@dataclass
class Agreement:
    """How far an exported model agrees with the switched model; logits are compared for samples routed alike."""

    images: int = 0
    switched: int = 0
    routed_differently: int = 0
    same_class: int = 0
    max_logit_difference: float = 0.0
    max_logit: float = 0.0

    def add(self, expected: tuple[Tensor, Tensor], actual: tuple[Tensor, Tensor]) -> None:
        """Add a batch: logits (N, classes) and decisions (N,) of both models."""
        (logits, switched), (other_logits, other_switched) = expected, actual
        alike = switched == other_switched
        difference = (logits - other_logits).abs()[alike]
        self.images += len(logits)
        self.switched += int(switched.sum())
        self.routed_differently += int((~alike).sum())
        self.same_class += int((logits.argmax(1) == other_logits.argmax(1)).sum())
        self.max_logit_difference = max([self.max_logit_difference, *difference.amax(1).tolist()])
        self.max_logit = max(self.max_logit, logits.abs().max().item())

    def facts(self) -> dict[str, Any]:
        """Return the values of a report; the argmax agreement is in percent of all images."""
        return {
            "images": self.images,
            "images_switched": self.switched,
            "images_routed_differently": self.routed_differently,
            "argmax_agreement_percent": 100 * self.same_class / max(1, self.images),
            "max_logit_difference": self.max_logit_difference,
            "max_logit": self.max_logit,
        }


@torch.inference_mode()
def compare(
    switched: SwitchedModel, exported: dict[str, ExportedForward], batches: Stream, *, label: str = "comparing"
) -> dict[str, Agreement]:
    """Compare each exported model with the switched model on batches of pixels, on any device."""
    agreements = {name: Agreement() for name in exported}
    for pixels, _labels in track(batches, len(batches), label):
        logits, _score, decisions = switched.route(pixels)
        for name, forward_pass in exported.items():
            agreements[name].add((logits.cpu(), decisions.cpu()), forward_pass(pixels.cpu()))
    return agreements


def _program(module: nn.Module, example: Tensor) -> ExportedProgram:
    sizes = {"pixels": {0: torch.export.Dim("batch", min=1)}}
    if isinstance(module, torch.fx.GraphModule):  # its input may have another name
        sizes = {next(n.name for n in module.graph.nodes if n.op == "placeholder"): sizes["pixels"]}
    with torch.no_grad(), _silence_exporters():
        return torch.export.export(module.eval(), (example,), dynamic_shapes=sizes)


def _session(content: bytes) -> Callable[[Tensor], list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda pixels: [torch.from_numpy(value) for value in session.run(None, {"pixels": pixels.numpy()})]


@contextmanager
def _silence_exporters() -> Iterator[None]:
    """Suppress the exporters' log messages and warnings, which are meant for their developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
