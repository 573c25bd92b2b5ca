"""What evaluate calibrates on, bounds and tells, how it switches whole networks, and a router that is used as it is."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from deeppatch.data.names import slug
from deeppatch.patching.router import Router

PATCH = "correct-patch-replace-perfloss/patch.safetensors"
PROBE = "switch-patch-replace-perfloss-probe"


@pytest.fixture(scope="module")
def shared(chain, tmp_path_factory):
    """Copies of what correct left, with and without a router."""
    names = ["pretrain", "assess-perfloss", "correct-patch-replace-perfloss", "correct-finetune", PROBE]
    return chain.copy(tmp_path_factory.mktemp("evaluated") / "output", *names)


def left(bench, line: str) -> tuple[str, dict, str]:
    """Run evaluate; return its folder, its metrics, and what it said."""
    before = {path: path.stat().st_mtime_ns for path in bench.root.glob("switch-*/run.json")}
    said = bench.ran(f"switch {line}").out
    (record,) = [path for path in bench.root.glob("switch-*/run.json") if before.get(path) != path.stat().st_mtime_ns]
    return record.parent.name, json.loads((record.parent / "metrics.json").read_text()), said


def test_test_images_that_calibrate_are_not_reported(shared):
    name, metrics, said = left(shared, "--calibrate-on test:10")
    assert name.startswith(f"{PROBE}-")
    assert "calibrating on 10 test images; everything reported is of the other 14" in said
    assert "of 10 clean test:10 images lost" in said
    assert metrics["test_images"] == 14
    facts = metrics["calibration"]
    assert (facts["calibration_images"], facts["clean_images"], facts["calibrated_on"]) == (10, 10, "test:10")
    assert "images_seen" not in facts
    for row in metrics["accuracy_percent"].values():
        assert all((row[view] * 14 / 100) % 1 == pytest.approx(0, abs=1e-6) for view in ("clean", "s=1", "mixed"))
    assert "there are 24 test images; leave some" in shared.refused("switch --calibrate_on test:24")


def test_a_folder_may_calibrate(shared, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(shared.data / "test", folder)
    shutil.rmtree(folder / "class1")
    _name, metrics, said = left(shared, f"--calibrate_on folder:{folder}")
    assert f"calibrating on 16 images in {folder}" in said
    assert metrics["test_images"] == 24
    assert metrics["calibration"]["clean_images"] == 16
    (folder / "class2").rename(folder / "zebra")
    assert "has classes that the data have not: zebra" in shared.refused(f"switch --calibrate_on folder:{folder}")
    assert "no such folder" in shared.refused(f"switch --calibrate_on folder:{tmp_path}/none")


def test_seen_images_are_told_in_every_report(shared, monkeypatch):
    _name, metrics, said = left(shared, "")
    assert metrics["calibration"]["images_seen"]["seen"] is False
    assert "has seen" not in said
    monkeypatch.setattr("deeppatch.patching.seen.LEVEL", 2.1)  # whatever is found counts
    _name, metrics, said = left(shared, "")
    remark = metrics["calibration"]["remark"]
    assert metrics["calibration"]["images_seen"]["seen"] is True
    assert remark.startswith("the network has seen the val images, or they are easier than others: accuracy ")
    assert "So the bound does not hold; calibrate on other images, as with --calibrate_on test:1000" in remark
    assert said.count(remark) == 2, "logged, and printed below the tables"
    assert f"[info] router: {remark}" in said


def test_bounds_alarms_and_another_router(shared):
    name, metrics, said = left(shared, "--router benefit-both --max-flips 50 --max-clean-drop 60 --alarm 0.2")
    assert "benefit-both" in name
    assert metrics["router"] == "benefit-both"
    facts = metrics["calibration"]
    assert facts["flips_bound"] <= 0.5
    assert "images of a mixed stream newly wrong" in said
    alarms = metrics["alarms_percent"]
    assert list(alarms["alarm_rate"])[:2] == ["clean", "s=0.5"]
    assert list(alarms["precision"]) == list(alarms["recall"]) == ["5 %", "50 %"]
    assert "samples unlike anything seen, in percent, for degradations (the original network answers them)" in said
    router = Router.from_bytes((shared.root / name / "router.safetensors").read_bytes(), shared.root)
    assert (router.kind, router.density is not None) == ("benefit-both", True)


def test_a_whole_network_is_switched_to(chain, shared):
    name, metrics, _said = left(shared, "-c finetune --router average")
    assert name.startswith("switch-finetune-average-")
    accuracy = metrics["accuracy_percent"]
    assert list(accuracy) == ["pretrained", "finetuned", "switched", "oracle router"]
    measured = chain.json(f"{PROBE}/metrics.json")["accuracy_percent"]
    assert accuracy["finetuned"] == pytest.approx(measured["finetuned"])
    assert accuracy["oracle router"]["clean"] == accuracy["pretrained"]["clean"]
    assert accuracy["oracle router"]["s=1"] == accuracy["finetuned"]["s=1"]
    _name, metrics, _said = left(shared, "-c finetune")
    assert metrics["router"] == "probe"


def test_further_networks_are_chosen_from(shared):
    tuned = shared.at("correct-finetune/weights.safetensors")
    _name, metrics, said = left(shared, f"--router benefit --experts {tuned} --max-clean-drop 60")
    assert f"inherited {tuned}" in said
    tuned_name = tuned.parent.name
    assert list(metrics["accuracy_percent"]) == [
        "pretrained", "finetuned", "patched", tuned_name, "switched", "oracle router",
    ]  # fmt: skip
    assert list(metrics["answered_percent"]) == ["original", "patched", tuned_name]
    assert sum(each["s=1"] for each in metrics["answered_percent"].values()) == pytest.approx(100)
    said = shared.refused(f"switch --experts {tuned}")
    assert said.startswith("--experts: the router probe decides between two networks")


def switches(bench, folder):
    """The folders that evaluate has left for an image folder."""
    return [path.parent for path in bench.output.glob(f"{slug(f'folder:{folder}')}/resnet8/switch-*/run.json")]


@pytest.mark.parametrize("spelled", ["--router", "--router_file"])
def test_a_folder_with_test_images_only_needs_patch_and_router(chain, shared, tmp_path, spelled):
    field = tmp_path / "field"
    shutil.copytree(shared.data / "test", field)
    shutil.rmtree(field / "class0")
    patch, router = (chain.at(name) for name in (PATCH, f"{PROBE}/router.safetensors"))
    said = shared.ran(f"switch --patch {patch} {spelled} {router} -d folder:{field}").out
    assert f"data: 16 test images of 3 classes in {field}; the router is used as it is" in said
    assert "inherited" in said
    (folder,) = switches(shared, field)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["test_images"], metrics["router"]) == (16, "probe")
    assert metrics["calibration"] == {"router_file": str(router)}
    assert (folder / "router.safetensors").read_bytes() == router.read_bytes()
    both = tmp_path / "both" / "test"
    shutil.copytree(shared.data / "test", both)
    shared.ran(f"switch --patch {patch} {spelled} {router} -d folder:{both.parent}")
    (folder,) = switches(shared, both.parent)
    now = json.loads((folder / "metrics.json").read_text())
    was = chain.json(f"{PROBE}/metrics.json")
    assert now["accuracy_percent"]["switched"] == pytest.approx(was["accuracy_percent"]["switched"])
    assert now["routing"] == was["routing"]
    for line, told in (
        (f"--patch {patch} {spelled} {router} --alarm 0.1", "the router is used as it is; leave out"),
        (f"{spelled} {tmp_path}/none.safetensors", "none.safetensors: No such file or directory"),
    ):
        assert told in shared.refused(f"switch {line} -d folder:{field}")
    (field / "class1").rename(field / "zebra")
    told = shared.refused(f"switch --patch {patch} {spelled} {router} -d folder:{field}")
    assert "has classes that" in told
    assert "was not made for: zebra" in told


def test_a_given_router_must_be_for_these_networks(shared, tmp_path):
    router = tmp_path / "router.safetensors"
    router.write_bytes(Router("probe", torch.ones(5), 0.0, 0.0).to_bytes())
    assert f"{router} was fitted for other networks than those at hand" in shared.refused(f"switch --router {router}")
