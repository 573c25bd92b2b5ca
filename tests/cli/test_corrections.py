"""Every correction that -c names: what it leaves and costs, and that later stages take it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from deeppatch.artifacts import state_digest, tensors_from_bytes
from deeppatch.cli.correct.runners import RUNNERS
from deeppatch.cli.corrections import OF_CORRECTION, TRAINED_CORRECTIONS
from deeppatch.cli.locating import CORRECTED
from deeppatch.localization.ranking import random_ranking
from deeppatch.patching.patch_file import Patch
from deeppatch.retrain.names import METHODS, STATISTICS_OF_PATCH

# 24 images of train and 6 of val, clean and at six levels
VAL = 6 * 7
# the folder of each, its command, and its passes: training ones and those that are forward only
LINES = {
    "norms": ("-c norms --epochs 2", 48, 2 * VAL),
    "surgical": ("-c surgical --passes 36", 36, 2 * VAL),
    "bank": ("-c bank", 0, 6 * 24 + 7 * 6),
    "interpolate": ("-c interpolate --max-clean-drop 50", 0, 21 * VAL),
    "patch-replace-random": ("-f random --epochs 1", 24, VAL),
    "patch-replace-perfloss-ratio1": ("--susp_ratio 1 --epochs 1", 24, VAL),
}


@pytest.fixture(scope="module")
def corrected(chain, tmp_path_factory):
    """The chain's base, its fine-tuned copy, and all other corrections; there is no ranking."""
    bench = chain.copy(tmp_path_factory.mktemp("corrected") / "output", "pretrain", "correct-finetune")
    for line, _train, _forward in LINES.values():
        bench.ran(f"correct {line}")
    return bench


def file_of(bench, name):
    return bench.at(f"correct-{name}/{CORRECTED.get(name.split('-')[0], 'weights.safetensors')}")


def base_of(bench):
    return safetensors.torch.load_file(bench.at("pretrain/weights.safetensors"))


def test_names_are_those_of_the_registry():
    assert set(RUNNERS) == {"patch", STATISTICS_OF_PATCH, *METHODS}
    assert {*TRAINED_CORRECTIONS, *CORRECTED, *(each for found in OF_CORRECTION.values() for each in found)} <= {
        *RUNNERS
    }


def convolutions(bench):
    state = base_of(bench).items()
    return {n.removeprefix("network.").removesuffix(".weight"): each for n, each in state if each.ndim == 4}


@pytest.mark.parametrize("name", LINES)
def test_a_correction_says_what_it_costs_and_stores(corrected, name):
    _line, train, forward = LINES[name]
    metrics = corrected.json(f"correct-{name}/metrics.json")
    assert metrics["passes"] == {"train": train, "forward": forward}
    whole = file_of(corrected, name).stat().st_size
    assert 0 < metrics["stored_bytes"] <= whole
    small = name in ("norms", "surgical")
    assert (metrics["stored_bytes"] < whole / 2) == small
    assert metrics["method"] == name.split("-")[0]
    assert (metrics["train_images"], metrics["val_images"]) == (24, 6)


def test_the_fine_tuned_network_says_so_too(corrected):
    metrics = corrected.json("correct-finetune/metrics.json")
    assert metrics["passes"] == {"train": 4 * 24, "forward": 4 * VAL}
    base = sum(
        each.numel() * each.element_size() for name, each in base_of(corrected).items() if "normalize" not in name
    )
    assert metrics["stored_bytes"] == base


@pytest.mark.parametrize("name", ["norms", "surgical", "bank", "interpolate"])
def test_later_stages_take_what_is_no_patch(corrected, name):
    said = corrected.ran(f"eval --state corrected -c {name}").out
    assert f"inherited {file_of(corrected, name)}" in said
    measured = corrected.json(f"eval-{name}/metrics.json")["accuracy_percent"]
    _tensors, meta = tensors_from_bytes(file_of(corrected, name).read_bytes(), file_of(corrected, name))
    assert meta["base"] == state_digest(base_of(corrected))
    assert corrected.json("pretrain/metrics.json")["accuracy_percent"] != measured
    if name == "bank":
        corrected.ran(f"switch -f random --finetuned {file_of(corrected, name)}")
        compared = corrected.json("switch-patch-replace-random-probe/metrics.json")["accuracy_percent"]["finetuned"]
        assert {view: compared[view] for view in measured} == pytest.approx(measured)


def test_patches_need_no_ranking_for_random_filters_and_for_all(corrected):
    patches = {
        name: Patch.from_bytes(file_of(corrected, name).read_bytes()) for name in LINES if name.startswith("patch")
    }
    widths = {name: len(each) for name, each in convolutions(corrected).items()}
    everything = patches["patch-replace-perfloss-ratio1"].channels
    assert everything == {name: list(range(width)) for name, width in widths.items()}
    some = patches["patch-replace-random"].channels
    assert {name: len(each) for name, each in some.items()} == {name: width // 4 for name, width in widths.items()}
    assert any(each != list(range(len(each))) for each in some.values())
    facts = corrected.json("correct-patch-replace-random/metrics.json")
    assert (facts["ranking"], facts["ratio"], facts["side"], facts["channels"]) == ("random", 0.25, "front", some)


def test_random_filters_are_those_of_the_random_ranking_and_depend_on_the_seed(corrected, tmp_path):
    widths = {name: len(each) for name, each in convolutions(corrected).items()}
    chosen = corrected.json("correct-patch-replace-random/metrics.json")["channels"]
    assert chosen == random_ranking(widths, 2021).choose(0.25)
    bench = corrected.copy(tmp_path / "output", "pretrain")
    bench.ran("correct -f random --epochs 1 --filter_seed 7")
    facts = bench.json("correct-patch-replace-random/metrics.json")
    assert facts["channels"] == random_ranking(widths, 7).choose(0.25) != chosen


def test_an_epoch_of_passes_is_an_epoch(corrected, tmp_path):
    bench = corrected.copy(tmp_path / "output", "pretrain")
    for method in ("finetune", "patch -f random"):
        left = []
        for budget in ("--epochs 1 --lr 0.3", "--passes 24 --lr 0.3", "--passes 12 --lr 0.3"):
            before = set(bench.root.iterdir())
            bench.ran(f"correct -c {method} {budget}")
            (folder,) = set(bench.root.iterdir()) - before
            (file,) = folder.glob("*.safetensors")
            left.append(file.read_bytes())
            trained = bench.json(f"{folder.name}/metrics.json")["passes"]["train"]
            assert trained == (12 if "12" in budget else 24)
        assert left[0] == left[1] != left[2]


def test_the_point_between_is_on_the_curve_and_r_finds_it_finished(corrected):
    facts = corrected.json("correct-interpolate/metrics.json")
    base, tuned, found = (
        base_of(corrected),
        *(safetensors.torch.load_file(file_of(corrected, name)) for name in ("finetune", "interpolate")),
    )
    line = {
        name: torch.lerp(each, tuned[name], facts["share"]) for name, each in base.items() if each.is_floating_point()
    }
    assert all(torch.allclose(found[name], each, atol=1e-6) for name, each in line.items())
    before = corrected.hashes("correct-interpolate")
    assert "finished already" in corrected.ran("correct -c interpolate --max-clean-drop 50 -r").out
    assert corrected.hashes("correct-interpolate") == before


def test_statistics_without_training_are_a_network_too_and_have_their_name(corrected):
    refused = corrected.refused("eval --state corrected -c norms --crt_epoch 0")
    assert refused.endswith(f"-c norms --crt_epoch 0 --output_dir {corrected.output}")
    corrected.ran("correct -c norms --epochs 0")
    assert corrected.files("correct-norms-statistics") == {"run.json", "weights.safetensors", "metrics.json"}
    assert corrected.json("correct-norms-statistics/metrics.json")["passes"] == {"train": 0, "forward": 24}
    corrected.ran("eval --state corrected -c norms --crt_epoch 0")
    corrected.ran("eval --state corrected -c norms")
    measured = [corrected.json(f"{name}/metrics.json") for name in ("eval-norms", "eval-norms-statistics")]
    assert [each["weights"] for each in measured] == ["corrected: norms", "corrected: norms-statistics"]
    assert measured[0]["accuracy_percent"] != measured[1]["accuracy_percent"]


def test_a_ranking_at_random_is_not_assessed(corrected):
    assert "-f random draws filters without a ranking: run correct -f random" in corrected.refused("select -f random")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--statistics again", "--statistics can only be used with -c interpolate, not with patch"),
        (
            "-c bank --passes 9",
            "--passes can only be used with -c patch and finetune and norms and surgical and",
        ),
        ("--filter_seed 3", "--filter_seed draws nothing here: add -f random or --susp_side random"),
        ("-c surgical --block 0", "--block 0: give a number from 1 on"),
        ("-c surgical --block 9", "block 9: this network has 3 blocks; give numbers from 1 to 3"),
        ("-c finetune --passes 3", "passes: give at least the 12 images of a batch"),
        ("-c finetune --epochs 0", "--crt_epoch 0: give a number above 0"),
        ("-c interpolate --max-clean-drop 200", "--max_clean_drop 200.0: give points from 0 to 100"),
        ("-c norms --passes 24 --epochs 0", "--passes 24 and --epochs 0 exclude each other"),
        ("-c nroms", "invalid choice: nroms (did you mean norms?)"),
    ],
)
def test_what_does_not_fit_is_one_line(corrected, line, said):
    assert said in corrected.refused(f"correct {line}")


def test_interpolation_without_a_fine_tuned_network_says_how_to_make_one(pretrained):
    said = pretrained.refused("correct -c interpolate")
    assert "correct-finetune/weights.safetensors is missing" in said
    assert "make it with: python src/correct.py" in said
    assert "-c finetune" in said


def test_a_rate_changes_nothing_where_nothing_is_trained(corrected):
    assert "--lr 0.5 changes nothing in correct" in corrected.ran("correct -c bank --lr 0.5").out


@pytest.fixture
def field(tmp_path):
    """A folder of 24 dark images without labels."""
    folder = tmp_path / "field"
    folder.mkdir()
    draw = np.random.default_rng(1)
    for number in range(24):
        Image.fromarray(draw.integers(0, 60, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def test_statistics_of_unlabelled_images_make_another_patch(corrected, field):
    given = corrected.at("correct-patch-replace-random/patch.safetensors")
    corrected.ran(f"correct -c statistics --patch {given} --unlabelled {field}")
    (folder,) = corrected.at("").glob("correct-statistics*")
    before, after = (Patch.from_bytes(p.read_bytes(), p) for p in (given, folder / "patch.safetensors"))
    assert before.channels == after.channels
    changed = {name for name, each in after.tensors.items() if not torch.equal(each, before.tensors[name])}
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)
    found = json.loads((folder / "metrics.json").read_text())
    assert (found["images"], found["passes"]) == (24, {"train": 0, "forward": 24})
    dark = Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8))
    assert "finished already" in corrected.ran(f"correct -c statistics --patch {given} --unlabelled {field} -r").out
    dark.save(field / "0.png")
    assert "finished already" not in corrected.ran(f"correct -c statistics --patch {given} --unlabelled {field} -r").out
    corrected.ran(f"switch -f random --patch {folder / 'patch.safetensors'}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("correct -c statistics", "-c statistics needs images: give a folder of them with --unlabelled"),
        ("correct -c norms --unlabelled .", "--unlabelled can only be used with -c statistics, not with norms"),
        ("switch -c statistics", "-c statistics leaves a patch like any other: use -c patch --patch FILE"),
    ],
)
def test_statistics_that_cannot_be_are_refused(corrected, line, said):
    assert said in corrected.refused(line)
