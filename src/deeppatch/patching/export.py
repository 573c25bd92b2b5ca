"""The switched model as files that run without this package: ONNX graphs and a torch.export program."""

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
from deeppatch.graph import folding
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import track

# what an exported form answers for pixels (N, 3, H, W): logits (N, classes), and which samples were switched (N,)
Answer = Callable[[Tensor], tuple[Tensor, Tensor]]


class RouterGraph(nn.Module):
    """Pixels to the router's scores and decisions, without a branch on data."""

    def __init__(self, switched: SwitchedModel) -> None:
        super().__init__()
        self.switched = switched

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels (N, 3, H, W) in [0, 1] to scores (N,), float64, and which samples are switched (N,)."""
        return self.switched.decide(self.switched.begin(pixels)[1])


class SwitchedGraph(nn.Module):
    """Pixels to logits, scores and decisions; each sample runs through one path, picked by indices.

    The samples of either path are gathered and their logits scattered, also where a path gets none: a graph has no
    branch on how many there are. So a batch that takes only one path costs what a mixed one does.
    """

    def __init__(self, switched: SwitchedModel) -> None:
        super().__init__()
        self.switched = switched

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map pixels (N, 3, H, W) in [0, 1] to logits (N, classes), scores (N,) and which samples are switched (N,)."""
        crossing, maps = self.switched.begin(pixels)
        scores, switched = self.switched.decide(maps)
        return self.switched.finish_each(switched, crossing), scores, switched


def export(model: nn.Module, patch: Patch, switched: SwitchedModel, example: Tensor) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file; `switched` was made from the classifier `model` and `patch`.

    All take pixels (N, 3, H, W) in [0, 1] of the size of `example` for any N from 1 on, and compute in float32 on a
    CPU. original.onnx and patched.onnx are whole networks, router.onnx says which of them a sample goes through;
    switched.pt2 is all three in one graph, which computes nothing twice.
    """
    patched = copy.deepcopy(model)
    apply(patched, patch, example)
    whole = copy.deepcopy(switched).cpu().eval()
    blank = torch.zeros_like(example, device="cpu")  # a program keeps its example, and no image shall travel in it
    for name, classifier in (("original.onnx", model), ("patched.onnx", patched)):
        yield name, onnx_bytes(_program(folding.folded(classifier).cpu(), blank), ["logits"])
    yield "router.onnx", onnx_bytes(_program(RouterGraph(whole), blank), ["score", "switched"])
    yield "switched.pt2", program_bytes(_program(SwitchedGraph(whole), blank))


def onnx_bytes(program: ExportedProgram, outputs: list[str]) -> bytes:
    """Return a program as one ONNX file, weights included, whose input is called `pixels`."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with _quiet():
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["pixels"], output_names=outputs, external_data=False
        )
    assert exported is not None
    ClearMetadataAndDocStringPass()(exported.model)  # paths of the sources that made it
    return exported.model_proto.SerializeToString(deterministic=True)


def program_bytes(program: ExportedProgram) -> bytes:
    """Return a program as `torch.export.load` reads it."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the sources that made it
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def loaded(files: dict[str, bytes]) -> dict[str, Answer]:
    """Return what each exported form answers, by name, of the files that `export` yields."""
    parts = (files[f"{name}.onnx"] for name in ("original", "patched", "router"))
    return {"onnx": loaded_onnx(*parts), "switched.pt2": loaded_program(files["switched.pt2"])}


def loaded_onnx(original: bytes, patched: bytes, router: bytes) -> Answer:
    """Return what three ONNX files answer together: the router decides, each sample runs through one network."""
    networks, decide = [_session(original), _session(patched)], _session(router)

    def answer(pixels: Tensor) -> tuple[Tensor, Tensor]:
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

    return answer


def loaded_program(content: bytes) -> Answer:
    """Return what switched.pt2 answers."""
    module = torch.export.load(io.BytesIO(content)).module()

    def answer(pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits, _score, switched = module(pixels)
        return logits, switched

    return answer


@dataclass
class Agreement:
    """How far an exported form answers as the switched model does; differences are those of samples routed alike."""

    images: int = 0
    switched: int = 0
    routed_differently: int = 0
    same_class: int = 0
    max_logit_difference: float = 0.0
    max_logit: float = 0.0

    def add(self, expected: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> None:
        """Take in one batch: logits (N, classes) and decisions (N,) of either."""
        (logits, switched), (other_logits, other_switched) = expected, found
        alike = switched == other_switched
        difference = (logits - other_logits).abs()[alike]
        self.images += len(logits)
        self.switched += int(switched.sum())
        self.routed_differently += int((~alike).sum())
        self.same_class += int((logits.argmax(1) == other_logits.argmax(1)).sum())
        self.max_logit_difference = max([self.max_logit_difference, *difference.amax(1).tolist()])
        self.max_logit = max(self.max_logit, logits.abs().max().item())

    def facts(self) -> dict[str, Any]:
        """Return it for a report; the argmax agreement is in percent of all images."""
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
    switched: SwitchedModel, forms: dict[str, Answer], batches: Stream, *, label: str = "comparing"
) -> dict[str, Agreement]:
    """Return how far each exported form agrees with the switched model on batches of pixels, wherever they lie."""
    found = {name: Agreement() for name in forms}
    for pixels, _labels in track(batches, len(batches), label):
        logits, _score, decisions = switched.route(pixels)
        for name, form in forms.items():
            found[name].add((logits.cpu(), decisions.cpu()), form(pixels.cpu()))
    return found


def _program(module: nn.Module, example: Tensor) -> ExportedProgram:
    sizes = {"pixels": {0: torch.export.Dim("batch", min=1)}}
    if isinstance(module, torch.fx.GraphModule):  # its input may be called otherwise
        sizes = {next(n.name for n in module.graph.nodes if n.op == "placeholder"): sizes["pixels"]}
    with torch.no_grad(), _quiet():
        return torch.export.export(module.eval(), (example,), dynamic_shapes=sizes)


def _session(content: bytes) -> Callable[[Tensor], list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda pixels: [torch.from_numpy(value) for value in session.run(None, {"pixels": pixels.numpy()})]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks to their own developers from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
