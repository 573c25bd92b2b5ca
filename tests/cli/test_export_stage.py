"""The stage that exports: what it reads, leaves and says, and what it refuses."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import shutil

import onnxruntime
import pytest
import torch

from deeppatch.data import views
from deeppatch.data.corruptions import SIGMAS, GaussianBlur
from deeppatch.data.scaling import Sizing
from deeppatch.data.sources import load

FOLDER = "export-patch-replace-perfloss-probe"
LEFT = {"run.json", "metrics.json", "original.onnx", "patched.onnx", "router.onnx", "switched.pt2"}
ROUTER = "switch-patch-replace-perfloss-probe/router.safetensors"
READ = {"pretrain/weights.safetensors", "correct-patch-replace-perfloss/patch.safetensors", ROUTER}


@pytest.fixture(scope="module")
def exported(chain, tmp_path_factory):
    """What export leaves beside a copy of the chain, and what it said."""
    bench = chain.copy(tmp_path_factory.mktemp("exported") / "output")
    before = bench.hashes()
    said = bench.ran("export -f perfloss -c patch --crt_type replace").out
    assert {name: digest for name, digest in bench.hashes().items() if not name.startswith("export-")} == before
    return bench, said


@pytest.mark.slow
def test_it_leaves_exactly_these_files_and_records_them(exported):
    bench, said = exported
    assert bench.files(FOLDER) == LEFT
    record = bench.json(f"{FOLDER}/run.json")
    assert record["outputs"] == bench.hashes(FOLDER)
    assert {bench.output / name for name in record["inputs"]} == {bench.at(name) for name in READ}
    for name, digest in record["inputs"].items():
        assert hashlib.sha256((bench.output / name).read_bytes()).hexdigest() == digest
        assert f"[info] inherited {bench.output / name}" in said
    assert f"[info] written to {bench.at(FOLDER)}" in said


@pytest.mark.slow
def test_the_metrics_say_how_far_the_files_agree_on_all_test_images(exported):
    bench, said = exported
    metrics = bench.json(f"{FOLDER}/metrics.json")
    assert (metrics["router"], metrics["test_images"], metrics["limit"]) == ("probe", 24, None)
    assert metrics["versions"]["onnxruntime"] == importlib.metadata.version("onnxruntime")
    assert metrics["against_switched_model"].keys() == {"clean", "mixed"}
    for view, forms in metrics["against_switched_model"].items():
        assert forms.keys() == {"onnx", "switched.pt2"}
        for facts in forms.values():
            assert (facts["images"], facts["images_routed_differently"]) == (24, 0)
            assert facts["argmax_agreement_percent"] == 100
            assert facts["max_logit_difference"] < 1e-5 * facts["max_logit"]
        assert f"[info] {view}: onnx: same class 100.00 %" in said
    assert 0 < metrics["against_switched_model"]["mixed"]["onnx"]["images_switched"] < 24


@pytest.mark.slow
def test_the_files_have_the_accuracy_that_evaluate_measured(exported):
    bench, _said = exported
    images = load(f"folder:{bench.data}", bench.output, 2021, Sizing(32)).test
    blur = GaussianBlur(SIGMAS)
    accuracy = bench.json("switch-patch-replace-perfloss-probe/metrics.json")["accuracy_percent"]
    names = {"original": "pretrained", "patched": "patched always on", "switched": "switched"}
    program = torch.export.load(io.BytesIO((bench.at(FOLDER) / "switched.pt2").read_bytes())).module()
    for level, view in ((0, "clean"), (3, "s=1.5")):
        pixels = blur(views.to_float(images.pixels), level)
        logits = {"switched": program(pixels)[0].detach()}
        for name in ("original", "patched"):
            session = onnxruntime.InferenceSession(bench.at(FOLDER) / f"{name}.onnx")
            logits[name] = torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])
        for name, network in names.items():
            right = (logits[name].argmax(1) == images.labels).double().mean().item()
            assert 100 * right == pytest.approx(accuracy[network][view]), (name, view)


@pytest.mark.slow
def test_resuming_what_has_finished_does_nothing(exported):
    bench, _said = exported
    before = bench.hashes()
    assert f"finished already: {bench.at(FOLDER)}" in bench.ran("export -r").out
    assert bench.hashes() == before


@pytest.mark.parametrize(
    ("gone", "script"), [("pretrain", "eval"), ("correct-patch-replace-perfloss", "correct"), ("switch-", "switch")]
)
def test_a_missing_stage_is_named_with_the_command_that_makes_it(bench, gone, script):
    for folder in bench.root.glob(f"{gone}*"):
        shutil.rmtree(folder)
    line = bench.refused("export")
    assert f"{bench.root}/{gone}" in line
    assert " is missing; " in line
    assert f"make it with: python src/{script}.py -m resnet8 " in line
    assert not (bench.at(FOLDER)).exists()


def test_the_command_for_a_missing_router_makes_the_one_that_was_asked_for(bench):
    shutil.rmtree(bench.at("switch-patch-replace-perfloss-flips"))
    line = bench.refused("export --router flips")
    assert bench.type_in(line.split("make it with: ")[1]).status == 0
    assert (bench.at("switch-patch-replace-perfloss-flips") / "router.safetensors").exists()


def test_a_router_that_was_fitted_to_another_patch_is_refused(bench):
    patch = bench.at("correct-patch-replace-perfloss/patch.safetensors")
    bench.ran("correct --crt_epoch 1")
    other = next(
        path for path in bench.root.glob("correct-patch-replace-perfloss-*/patch.safetensors") if path != patch
    )
    patch.write_bytes(other.read_bytes())  # as if the same command had been run on another machine
    (patch.parent / "run.json").write_bytes((other.parent / "run.json").read_bytes())
    shutil.rmtree(other.parent)
    line = bench.refused("export")
    assert str(bench.at(ROUTER)) in line
    assert "was made from another" in line
    assert "make it again with: python src/switch.py" in line


def test_a_damaged_router_is_refused(bench):
    path = bench.at(ROUTER)
    path.write_bytes(path.read_bytes()[:-1])
    assert "damaged" in bench.refused("export")


def test_what_cannot_be_exported_is_refused_at_once(empty):
    line = empty.refused("export -c finetune --amp")
    assert "-c finetune has no two paths" in line
    assert "--amp: exported networks compute in float32" in line
    assert not empty.output.exists()


def test_a_missing_package_is_named_with_the_command_that_installs_it(bench, monkeypatch):
    def version(name: str) -> str:
        if name == "onnxscript":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    line = bench.refused("export")
    assert line == "export needs onnxscript; install it with: pip install 'deeppatch[export]'"


@pytest.mark.slow
def test_with_a_given_patch_the_router_that_was_fitted_to_it_is_taken(bench):
    before = set(bench.root.glob("correct-*/patch.safetensors"))
    bench.ran("correct --crt_epoch 1")
    (other,) = set(bench.root.glob("correct-*/patch.safetensors")) - before
    routers = set(bench.root.glob("switch-*/router.safetensors"))
    refused = bench.refused(f"export --patch {other}")
    assert f"was fitted for another patch than {other}" in refused
    bench.ran(f"switch --patch {other}")
    bench.ran(f"export --patch {other}")
    (router,) = set(bench.root.glob("switch-*/router.safetensors")) - routers
    (folder,) = bench.root.glob(f"{FOLDER}*")
    read = bench.json(f"{folder.name}/run.json")["inputs"]
    assert any(name.endswith(f"{router.parent.name}/router.safetensors") for name in read)
