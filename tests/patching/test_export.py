"""Exported files answer as the switched model does, without this package, whatever paths a batch takes."""

from __future__ import annotations

import copy
import functools
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deeppatch.artifacts import state_digest
from deeppatch.patching import export
from deeppatch.patching.attachment import attach
from deeppatch.patching.patch_file import Patch, apply, extract
from deeppatch.patching.router import FEATURES, Router
from deeppatch.patching.switched import SwitchedModel
from deeppatch.zoo.classifier import Classifier

ROOT = Path(__file__).resolve().parents[2]
FILES = ["original.onnx", "patched.onnx", "router.onnx", "switched.pt2"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Residual(nn.Module):
    """Two convolutions around a shortcut; the first one's input is read again after it where it is patched second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem_norm(self.stem(x)))
        x = self.relu(self.norm(self.conv(x)) + x)
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class Exported:
    """A switched model, the networks that it was made from, images that take both paths, and the exported files."""

    def __init__(self, kind: str, router: str, channels: dict[str, list[int]]) -> None:
        torch.manual_seed(7)
        self.pixels = torch.rand(12, 3, 9, 10)
        self.pixels[::2] = nn.functional.avg_pool2d(self.pixels[::2], 3, 1, 1)
        self.model = Classifier(Residual(), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
        self.model.train()(self.pixels)
        self.model.eval()
        self.patch = random_patch(self.model, kind, channels, self.pixels)
        self.patched = copy.deepcopy(self.model)
        apply(self.patched, self.patch, self.pixels[:2])
        self.switched = SwitchedModel(self.model, self.patch, self.pixels[:2])
        features = FEATURES[router](self.switched.run_stem(self.pixels)[1]).double()
        weight = torch.randn(features.shape[1], dtype=torch.float64) / (features.std(0) + 1e-3)
        scores = (features @ weight).sort().values
        place = 3 + int(scores.diff()[3:8].argmax())  # no score is near the threshold
        self.switched.router = Router(router, weight, 0.0, scores[place : place + 2].mean().item())
        self.files = dict(export.export(self.model, self.patch, self.switched, self.pixels[:2]))

    def forms(self) -> dict[str, export.ExportedForward]:
        return {
            "onnx": export.load_onnx(*(self.files[name] for name in FILES[:3])),
            "switched.pt2": export.load_program(self.files["switched.pt2"]),
        }


@torch.no_grad()
def random_patch(model: Classifier, kind: str, channels: dict[str, list[int]], pixels: Tensor) -> Patch:
    attachment = attach(copy.deepcopy(model).network, channels, kind, model.normalize(pixels))
    for unit in attachment.units.values():
        for values in unit.new_parameters().values():
            values.copy_(torch.randn(values.shape)) if values.is_floating_point() and values.ndim == 4 else None
    for norm in attachment.norms.values():
        norm.running_mean.add_(0.1)
        norm.running_var.mul_(1.5)
    return extract(attachment, state_digest(model.state_dict()))


CASES = {
    "replace": ("replace", "probe", {"stem": [1, 3], "conv": [0, 2]}),
    "replaced late": ("replace", "flips", {"conv": [1]}),
    "crtunit": ("crtunit", "probe", {"stem": [0, 2], "conv": [1]}),
}


@functools.cache
def exported_case(name: str) -> Exported:
    with torch.no_grad():
        return Exported(*CASES[name])


@pytest.fixture(params=[case if case == "crtunit" else pytest.param(case, marks=pytest.mark.slow) for case in CASES])
def exported(request) -> Exported:
    return exported_case(request.param)


def session(content: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@torch.no_grad()
def test_every_form_answers_as_the_switched_model_on_every_mix_of_paths(exported):
    logits, _, moved = exported.switched.route(exported.pixels)
    assert 4 <= int(moved.sum()) <= 8
    whole = torch.stack([exported.model(exported.pixels), exported.patched(exported.pixels)])
    assert (whole[0] - whole[1]).abs().amax(1).min() > 1e-3, "the paths do not differ"
    torch.testing.assert_close(logits, whole[moved.long(), torch.arange(12)], **CLOSE)
    yes, no = moved.nonzero().squeeze(1), (~moved).nonzero().squeeze(1)
    batches = [torch.arange(12), yes, no, yes[:1], no[:1], torch.cat([yes[:4], no[:1]]), torch.arange(12).repeat(3)]
    for name, answer in exported.forms().items():
        for places in batches:
            found, found_moved = answer(exported.pixels[places])
            assert torch.equal(found_moved, moved[places]), name
            torch.testing.assert_close(found, logits[places], **CLOSE)


@torch.no_grad()
def test_onnx_files_are_the_unfolded_networks_and_the_router(exported):
    given = {"pixels": exported.pixels.numpy()}
    for name, model in (("original.onnx", exported.model), ("patched.onnx", exported.patched)):
        graph = session(exported.files[name])
        assert [(each.name, each.type) for each in graph.get_outputs()] == [("logits", "tensor(float)")]
        assert graph.get_inputs()[0].shape[1:] == [3, 9, 10]
        torch.testing.assert_close(torch.from_numpy(graph.run(None, given)[0]), model(exported.pixels), **CLOSE)
    score, switched = session(exported.files["router.onnx"]).run(["score", "switched"], given)
    _, scores, moved = exported.switched.route(exported.pixels)
    torch.testing.assert_close(torch.from_numpy(score), scores, rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.from_numpy(switched), moved)


@torch.no_grad()
def test_a_program_runs_each_sample_through_one_path_alone(exported):
    """Multiply-adds are those of the switched model, for which test_switched shows it; where a path is empty too."""
    program = torch.export.load(io.BytesIO(exported.files["switched.pt2"])).module()
    _, _, moved = exported.switched.route(exported.pixels)
    for places in (torch.arange(12), moved.nonzero().squeeze(1), (~moved).nonzero().squeeze(1)):
        work = []
        for model in (program, exported.switched):
            with FlopCounterMode(display=False) as counter:
                model(exported.pixels[places])
            work.append(counter.get_total_flops())
        assert work[0] == work[1] > 0


def test_files_carry_neither_paths_nor_images(exported):
    assert list(exported.files) == FILES
    example = exported.pixels[:2].numpy().tobytes()
    for name, content in exported.files.items():
        assert str(ROOT).encode() not in content, name
        assert example not in content, name
        assert b"deeppatch/patching" not in content, name


WITHOUT = """
import pathlib, sys, numpy, onnxruntime, torch
for place in pathlib.Path().iterdir():
    pixels = numpy.load(place / "pixels.npy")
    parts = {name: onnxruntime.InferenceSession(place / f"{name}.onnx") for name in ("original", "patched", "router")}
    _, switched = parts["router"].run(None, {"pixels": pixels})
    both = [parts[name].run(None, {"pixels": pixels})[0] for name in ("original", "patched")]
    program = torch.export.load(place / "switched.pt2").module()
    numpy.savez(place / "found.npz", onnx=numpy.where(switched[:, None], both[1], both[0]),
                program=program(torch.from_numpy(pixels))[0].detach().numpy())
assert not [name for name in sys.modules if name.startswith("deeppatch")]
"""


@pytest.mark.slow
@torch.no_grad()
def test_files_run_where_this_package_is_not(tmp_path):
    all_exported = {name: exported_case(name) for name in CASES}
    for case, exported in all_exported.items():
        (tmp_path / case).mkdir()
        for name, content in exported.files.items():
            (tmp_path / case / name).write_bytes(content)
        np.save(tmp_path / case / "pixels.npy", exported.pixels.numpy())
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    for case, exported in all_exported.items():
        expected = exported.switched(exported.pixels)
        found = np.load(tmp_path / case / "found.npz")
        assert set(found) == {"onnx", "program"}
        for values in found.values():
            torch.testing.assert_close(torch.from_numpy(values), expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["crtunit"], indirect=True)
def test_exporting_changes_nothing_and_leaves_the_same_bytes(exported):
    states = [state_digest(module.state_dict()) for module in (exported.model, exported.switched)]
    again = dict(export.export(exported.model, exported.patch, exported.switched, exported.pixels[:2]))
    assert again == exported.files
    assert [state_digest(module.state_dict()) for module in (exported.model, exported.switched)] == states


@torch.no_grad()
def test_compare_counts_what_differs(exported):
    logits, _, moved = exported.switched.route(exported.pixels)

    def faulty(pixels: Tensor) -> tuple[Tensor, Tensor]:
        found, decisions = exported.switched.route(pixels)[::2]
        wrong = found.clone()
        wrong[0] -= 0.25  # the class stays
        wrong[1] = -wrong[1]
        decisions = decisions.clone()
        decisions[1] = ~decisions[1]
        return wrong, decisions

    same = lambda pixels: exported.switched.route(pixels)[::2]  # noqa: E731
    batches = [(part, part) for part in exported.pixels.split(6)]
    found = export.compare(exported.switched, {"faulty": faulty, "same": same}, batches)
    facts = {name: agreement.facts() for name, agreement in found.items()}
    assert facts["same"] == {
        "images": 12, "images_switched": int(moved.sum()), "images_routed_differently": 0,
        "argmax_agreement_percent": 100.0, "max_logit_difference": 0.0,
        "max_logit": pytest.approx(logits.abs().max().item()),
    }  # fmt: skip
    assert facts["faulty"]["images_routed_differently"] == 2
    assert facts["faulty"]["argmax_agreement_percent"] == pytest.approx(100 * 10 / 12)
    assert facts["faulty"]["max_logit_difference"] == pytest.approx(0.25, abs=1e-6)
