from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from deeppatch.artifacts import state_digest
from deeppatch.data import sources, views
from deeppatch.data.corruptions import SIGMAS, GaussianBlur
from deeppatch.data.scaling import Sizing
from deeppatch.localization import ratio_estimation
from deeppatch.patching.patch_file import Patch
from deeppatch.patching.router import Router
from deeppatch.patching.switched import SwitchedModel
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier

PATCHED = {"run.json", "patch.safetensors", "history.csv", "metrics.json"}
SWITCHED = {"run.json", "router.safetensors", "metrics.json", "metrics.csv", "router.csv", "accuracy.png"}
MEASURED = {"run.json", "metrics.json", "metrics.csv"}
RANKED = {"run.json", "ranking.json", "ranking.csv"}
LEFT = {
    "pretrain": {*MEASURED, "weights.safetensors", "history.csv"},
    "assess-perfloss": {*RANKED, "suspicion.png"},
    "assess-featswap": {*RANKED, "suspicion.png"},
    "correct-finetune": {"run.json", "weights.safetensors", "history.csv", "metrics.json"},
    "correct-patch-replace-perfloss": PATCHED,
    "correct-patch-crtunit-featswap-ratio0.5-rear": PATCHED,
    "switch-patch-replace-perfloss-probe": SWITCHED,
    "switch-patch-replace-perfloss-flips": SWITCHED,
    "switch-patch-replace-perfloss-probe-batch": SWITCHED,
    "switch-patch-crtunit-featswap-ratio0.5-rear-flips": SWITCHED,
    "eval-patch-replace-perfloss": MEASURED,
    "eval-finetune": MEASURED,
}
# what each stage reads, as its record names it, without the common start of the path
READ = {
    "pretrain": set(),
    "assess-perfloss": {"pretrain/weights.safetensors"},
    "assess-featswap": {"pretrain/weights.safetensors"},
    "correct-finetune": {"pretrain/weights.safetensors"},
    "correct-patch-replace-perfloss": {"pretrain/weights.safetensors", "assess-perfloss/ranking.json"},
    "correct-patch-crtunit-featswap-ratio0.5-rear": {"pretrain/weights.safetensors", "assess-featswap/ranking.json"},
    "switch-patch-replace-perfloss-probe": {
        "pretrain/weights.safetensors", "correct-patch-replace-perfloss/patch.safetensors",
        "correct-finetune/weights.safetensors",
    },
    "switch-patch-crtunit-featswap-ratio0.5-rear-flips": {
        "pretrain/weights.safetensors", "correct-patch-crtunit-featswap-ratio0.5-rear/patch.safetensors",
    },
    "eval-patch-replace-perfloss": {
        "pretrain/weights.safetensors", "correct-patch-replace-perfloss/patch.safetensors",
    },
    "eval-finetune": {"pretrain/weights.safetensors", "correct-finetune/weights.safetensors"},
}  # fmt: skip
RECORD = {
    "command", "settings", "git", "device", "hardware", "threads", "python", "torch", "torchvision", "numpy", "ranks",
    "wall_seconds", "inputs", "outputs", "stage", "defaults", "consumed", "data",
}  # fmt: skip
LEVELS = ["s=0.5", "s=1", "s=1.5", "s=2", "s=2.5", "s=3"]
VIEWS = ["clean", *LEVELS, "blurred", "append"]
PROBE = "switch-patch-replace-perfloss-probe"
SWITCHES = [name for name in LEFT if name.startswith("switch-")]


def test_each_stage_leaves_exactly_these_files(chain):
    assert {name: chain.files(name) for name in chain.names()} == LEFT


def test_nothing_lies_beside_the_stages_folders(chain):
    assert [path.name for path in chain.output.iterdir()] == [chain.slug]
    assert [path.name for path in (chain.output / chain.slug).iterdir()] == ["resnet8"]
    assert all(path.is_dir() for path in chain.root.iterdir())


@pytest.mark.parametrize("stage", LEFT)
def test_a_record_holds_what_was_run_and_on_what(chain, chain_lines, stage):
    record = chain.json(f"{stage}/run.json")
    assert record.keys() == RECORD
    script, arguments = chain.arguments(chain_lines[stage])
    assert record["command"] == f"python src/{script}.py {shlex.join(arguments)}"
    batch = 36 if stage == "assess-perfloss" else 12
    assert record["settings"].items() >= {
        "model": "resnet8", "dataset": f"folder:{chain.data}", "batch_size": batch, "device": "cpu", "seed": 2021,
        "noise_type": "gaussion", "limit": None,
    }.items()  # fmt: skip
    assert not {"lr", "crt_epoch"} & record["settings"].keys() or stage.startswith(("pretrain", "correct")), "its own"
    assert not {"output_dir", "data_dir", "resume", "prefix", "command"} & record["settings"].keys()
    assert (record["device"], record["threads"], record["torch"]) == ("cpu", 1, torch.__version__)
    assert record["numpy"] == np.__version__
    assert record["git"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["git"])
    assert 0 < record["wall_seconds"] < 600


def test_a_record_holds_the_options_that_were_given(chain):
    settings = chain.json("correct-patch-crtunit-featswap-ratio0.5-rear/run.json")["settings"]
    given = {"fs_method": "featswap", "crt_method": "patch", "crt_type": "crtunit", "susp_ratio": 0.5}
    assert settings.items() >= {**given, "susp_side": "rear", "crt_epoch": 3, "lr": 0.1}.items()


def test_a_record_carries_the_settings_of_what_the_stage_consumed(chain):
    consumed = chain.json("switch-patch-replace-perfloss-probe/run.json")["consumed"]
    assert consumed.keys() == {"base", "patch", "finetuned"}
    assert consumed["patch"]["settings"].items() >= {"lr": 0.2, "crt_epoch": 4, "crt_type": "replace"}.items()
    assert consumed["patch"]["consumed"]["ranking"]["settings"]["fs_method"] == "perfloss"
    assert consumed["base"]["settings"].items() >= {"max_epoch": 6, "lr": 0.1}.items()


@pytest.mark.parametrize("stage", READ)
def test_a_record_names_every_input_with_its_hash(chain, stage):
    inputs = chain.json(f"{stage}/run.json")["inputs"]
    start = f"{chain.slug}/resnet8/"
    assert {re.sub("-[0-9a-f]{6}/", "/", name.removeprefix(start)) for name in inputs} == READ[stage]
    for name, digest in inputs.items():
        assert hashlib.sha256((chain.output / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("stage", LEFT)
def test_a_record_names_every_output_with_its_hash(chain, stage):
    assert chain.json(f"{stage}/run.json")["outputs"] == chain.hashes(stage)


@pytest.mark.parametrize("stage", ["pretrain", "eval-patch-replace-perfloss", "eval-finetune"])
def test_measurements_are_consistent_and_the_table_says_the_same(chain, stage):
    metrics = chain.json(f"{stage}/metrics.json")
    accuracy = metrics["accuracy_percent"]
    assert list(accuracy) == VIEWS
    assert (metrics["dataset"], metrics["model"], metrics["test_images"]) == (chain.slug, "resnet8", 24)
    assert all(is_share_of(accuracy[view], 24) for view in ["clean", *LEVELS])
    assert accuracy["blurred"] == pytest.approx(np.mean([accuracy[view] for view in LEVELS]))
    assert accuracy["append"] == pytest.approx(np.mean([accuracy[view] for view in ["clean", *LEVELS]]))
    table = pd.read_csv(chain.at(stage) / "metrics.csv").set_index("network")
    name = "pretrained" if stage == "pretrain" else stage.removeprefix("eval-")
    assert table.loc[name].to_dict() == pytest.approx(accuracy, rel=1e-5)
    assert len(table) == 1


def test_pretrain_keeps_the_best_epoch_and_measures_that(chain):
    metrics = chain.json("pretrain/metrics.json")
    history = pd.read_csv(chain.at("pretrain") / "history.csv")
    assert list(history) == ["epoch", "loss", "val_accuracy_percent", "best"]
    assert list(history.epoch) == [1, 2, 3, 4, 5, 6]
    best = history.val_accuracy_percent.idxmax() + 1
    assert list(history.epoch[history.best]) == [best]
    assert metrics["weights"] == f"trained here, 6 epochs, best {best}"
    model, images, blur = base_and_test(chain)
    clean = accuracy_of(model, images, blur, 0)
    assert metrics["accuracy_percent"]["clean"] == pytest.approx(clean)
    assert clean > 60, "so little learnt that nothing below could fail"
    assert metrics["accuracy_percent"]["s=3"] == pytest.approx(accuracy_of(model, images, blur, 6))


@pytest.mark.parametrize(("method", "sign", "degraded"), [("perfloss", 1, 36), ("featswap", -1, 6)])
def test_a_ranking_orders_every_filter_of_every_layer(chain, method, sign, degraded):
    ranking = chain.json(f"assess-{method}/ranking.json")
    network = ARCHITECTURES["resnet8"](3)
    widths = {n: m.out_channels for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert ranking["method"] == method
    assert (ranking["val_images"], ranking["degraded_images"], ranking["limit"]) == (6, degraded, None)
    assert {name: len(layer["scores"]) for name, layer in ranking["layers"].items()} == widths
    for layer in ranking["layers"].values():
        scores = layer["scores"]
        assert layer["order"] == sorted(range(len(scores)), key=lambda c, scores=scores: (sign * scores[c], c))
        assert all(abs(score * degraded - round(score * degraded)) < 1e-9 for score in scores)
    assert len({score for layer in ranking["layers"].values() for score in layer["scores"]}) > 2
    table = pd.read_csv(chain.at(f"assess-{method}") / "ranking.csv")
    for name, rows in table.groupby("layer"):
        assert list(rows.channel) == ranking["layers"][name]["order"]
        assert list(rows["rank"]) == list(range(1, widths[name] + 1))
        scores = [ranking["layers"][name]["scores"][channel] for channel in rows.channel]
        assert list(rows.score) == pytest.approx(scores, rel=1e-5)
    assert set(table.layer) == widths.keys()


def test_a_ranking_is_tied_to_the_base_weights(chain):
    base = state_digest(safetensors.torch.load_file(chain.at("pretrain") / "weights.safetensors"))
    assert chain.json("assess-perfloss/ranking.json")["base"] == base
    assert read_patch(chain, "correct-patch-replace-perfloss").base == base


@pytest.mark.parametrize(
    ("stage", "kind", "method", "ratio", "side"),
    [
        ("correct-patch-replace-perfloss", "replace", "perfloss", 0.25, "front"),
        ("correct-patch-crtunit-featswap-ratio0.5-rear", "crtunit", "featswap", 0.5, "rear"),
    ],
)
def test_a_patch_holds_the_chosen_side_of_the_ranking(chain, stage, kind, method, ratio, side):
    layers = chain.json(f"assess-{method}/ranking.json")["layers"]
    counts = {name: int(ratio * len(layer["order"])) for name, layer in layers.items()}
    chosen = {
        name: sorted(layer["order"][: counts[name]] if side == "front" else layer["order"][-counts[name] :])
        for name, layer in layers.items()
    }
    patch = read_patch(chain, stage)
    assert (patch.kind, patch.channels) == (kind, chosen)
    metrics = chain.json(f"{stage}/metrics.json")
    assert metrics["channels"] == chosen
    said = {"method": "patch", "kind": kind, "ranking": method, "ratio": ratio, "side": side}
    assert metrics.items() >= {**said, "filters": sum(counts.values()), "train_images": 24, "val_images": 6}.items()


@pytest.mark.parametrize("stage", [name for name in LEFT if name.startswith("correct-")])
def test_a_correction_keeps_its_best_epoch(chain, stage):
    metrics = chain.json(f"{stage}/metrics.json")
    history = pd.read_csv(chain.at(stage) / "history.csv")
    assert metrics["epochs"] == len(history)
    assert metrics["best_epoch"] == history.val_accuracy_percent.idxmax() + 1
    assert list(history.epoch[history.best]) == [metrics["best_epoch"]]
    assert metrics["val_append_accuracy_percent"] == pytest.approx(history.val_accuracy_percent.max(), rel=1e-5)
    assert is_share_of(metrics["val_append_accuracy_percent"], 6 * 7)


def test_finetune_trains_everything_and_leaves_the_base_alone(chain):
    before = safetensors.torch.load_file(chain.at("pretrain") / "weights.safetensors")
    after = safetensors.torch.load_file(chain.at("correct-finetune") / "weights.safetensors")
    assert before.keys() == after.keys()
    trained = [key for key in before if key.endswith(("weight", "bias"))]
    assert all(not torch.equal(before[key], after[key]) for key in trained)
    assert torch.equal(before["normalize.mean"], after["normalize.mean"])


@pytest.mark.parametrize("stage", SWITCHES)
def test_accuracy_is_the_pretrained_one_plus_repair_minus_break(chain, stage):
    metrics = chain.json(f"{stage}/metrics.json")
    accuracy, changed = metrics["accuracy_percent"], metrics["change_against_pretrained_percent"]
    finetuned = [] if "crtunit" in stage else ["finetuned"]  # it ran before there was a fine-tuned network
    assert list(accuracy) == ["pretrained", *finetuned, "patched always on", "switched", "oracle router"]
    assert list(changed) == list(accuracy)[1:]
    for name, change in changed.items():
        for view in [*VIEWS, "mixed"]:
            gained = change["repair"][view] - change["break"][view]
            assert accuracy[name][view] == pytest.approx(accuracy["pretrained"][view] + gained)
            assert min(change["repair"][view], change["break"][view]) >= 0
    assert any(change["break"]["append"] > 0 and change["repair"]["append"] > 0 for change in changed.values())


@pytest.mark.parametrize("stage", SWITCHES)
def test_switched_tables_say_what_the_metrics_say(chain, stage):
    metrics = chain.json(f"{stage}/metrics.json")
    table = pd.read_csv(chain.at(stage) / "metrics.csv").set_index(["measure", "network"])
    expected = {("accuracy", name): row for name, row in metrics["accuracy_percent"].items()}
    for name, change in metrics["change_against_pretrained_percent"].items():
        expected |= {("repair", name): change["repair"], ("break", name): change["break"]}
    assert set(table.index) == expected.keys()
    for key, row in expected.items():
        assert table.loc[key].to_dict() == pytest.approx(row, rel=1e-5)
    accuracy, repair, broken = table.loc["accuracy"], table.loc["repair"], table.loc["break"]
    recomputed = accuracy.loc["pretrained"] + repair.loc["switched"] - broken.loc["switched"]
    assert accuracy.loc["switched"].to_dict() == pytest.approx(recomputed.to_dict(), abs=1e-3)
    routing = pd.read_csv(chain.at(stage) / "router.csv").set_index("view")
    card = metrics["routing"]
    assert list(routing.index) == ["clean", *LEVELS, "blurred"]
    assert routing.routed_wrongly_percent["clean"] == pytest.approx(card["false_switch_percent"], rel=1e-5)
    for view in [*LEVELS, "blurred"]:
        assert routing.auroc[view] == pytest.approx(card["auroc"][view], rel=1e-5)
        assert routing.routed_wrongly_percent[view] == pytest.approx(card["missed_switch_percent"][view], abs=1e-4)


def test_networks_compared_are_those_that_the_other_stages_measured(chain):
    accuracy = chain.json(f"{PROBE}/metrics.json")["accuracy_percent"]
    for name, stage in {
        "pretrained": "pretrain", "finetuned": "eval-finetune", "patched always on": "eval-patch-replace-perfloss",
    }.items():  # fmt: skip
        own = chain.json(f"{stage}/metrics.json")["accuracy_percent"]
        assert {view: accuracy[name][view] for view in VIEWS} == pytest.approx(own)
    assert accuracy["pretrained"] != accuracy["patched always on"]


def test_the_oracle_takes_the_patch_for_blurred_images_alone(chain):
    accuracy = chain.json(f"{PROBE}/metrics.json")["accuracy_percent"]
    assert accuracy["oracle router"]["clean"] == accuracy["pretrained"]["clean"]
    assert all(accuracy["oracle router"][view] == accuracy["patched always on"][view] for view in LEVELS)


@pytest.mark.parametrize(
    ("stage", "patch"),
    [
        (PROBE, "correct-patch-replace-perfloss"),
        ("switch-patch-replace-perfloss-flips", "correct-patch-replace-perfloss"),
        (
            "switch-patch-crtunit-featswap-ratio0.5-rear-flips",
            "correct-patch-crtunit-featswap-ratio0.5-rear",
        ),
    ],
)
def test_base_patch_and_router_as_they_lie_on_disk_give_the_reported_accuracies(chain, stage, patch):
    model, images, blur = base_and_test(chain)
    path = chain.at(stage) / "router.safetensors"
    router = Router.from_bytes(path.read_bytes(), path)
    switched = SwitchedModel(model, read_patch(chain, patch), views.to_float(images.pixels[:2]), router)
    metrics = chain.json(f"{stage}/metrics.json")
    card = metrics["routing"]
    for level, view in enumerate(["clean", *LEVELS]):
        measured = accuracy_of(switched, images, blur, level, batch_size=7)  # a sample's answer is its own
        assert measured == pytest.approx(metrics["accuracy_percent"]["switched"][view])
        with torch.inference_mode():
            moved = 100 * switched.route(blur(views.to_float(images.pixels), level))[2].double().mean().item()
        wrong = card["false_switch_percent"] if level == 0 else 100 - card["missed_switch_percent"][view]
        assert moved == pytest.approx(wrong)


def test_a_batch_decides_as_one_and_its_artifacts_lie_apart(chain):
    batch, sample = (chain.json(f"{PROBE}{end}/metrics.json") for end in ("-batch", ""))
    assert (batch["switch"], sample["switch"]) == ("batch", "sample")
    assert batch["calibration"] == sample["calibration"]
    shares = [batch["routing"]["false_switch_percent"], *batch["routing"]["missed_switch_percent"].values()]
    assert all(share * 2 % 100 == pytest.approx(0) for share in shares[:-1]), "24 images are two batches of 12"
    assert batch["accuracy_percent"]["switched"] != sample["accuracy_percent"]["switched"]


def test_the_calibrations_say_what_was_found_on_val(chain):
    probe = chain.json(f"{PROBE}/metrics.json")["calibration"]
    assert (probe["val_images"], probe["clean_images"], probe["max_clean_drop"]) == (6, 6, 0.001)
    flips = chain.json("switch-patch-replace-perfloss-flips/metrics.json")["calibration"]
    assert flips["boundary"] == pytest.approx((flips["mean_d_clean"] + flips["mean_d_degraded"]) / 2)
    assert flips["degraded_side"] == (1 if flips["mean_d_degraded"] >= flips["mean_d_clean"] else -1)


def test_each_stage_says_what_it_inherited_and_where_it_wrote(bench):
    said = bench.ran("switch -f perfloss --router flips").out
    for name in READ[PROBE]:
        assert f"[info] inherited {bench.at(name)}" in said
    assert f"[info] data: {bench.slug}, 3 classes, 24 train, 6 val, 24 test images" in said
    assert f"written to {bench.at('switch-patch-replace-perfloss-flips')}" in said
    for network in ("pretrained", "finetuned", "patched always on", "switched", "oracle router"):
        assert re.search(rf"^ *{network}( +\d+\.\d\d){{10}}$", said, re.MULTILINE)
    assert re.search(r"^ *switched( \+\d+\.\d +-\d+\.\d|  *\+\d+\.\d -\d+\.\d){10}$", said, re.MULTILINE)


def test_evaluate_without_a_finetuned_network_says_how_to_make_one(bench):
    shutil.rmtree(bench.at("correct-finetune"))
    said = bench.ran("switch -f perfloss").out
    command = re.search(r"no fine-tuned network to compare with; make one with: (.+)", said)
    assert bench.type_in(f"{command.group(1)} --crt_epoch 1").status == 0
    assert "finetuned" in bench.ran("switch -f perfloss").out


@pytest.mark.slow
def test_the_chain_run_again_elsewhere_leaves_the_same_bytes(chain, empty, chain_lines):
    for line in chain_lines.values():
        empty.ran(line)
    assert empty.hashes() == chain.hashes()


def test_a_stage_run_twice_in_one_place_leaves_the_same_bytes(bench):
    before, names = bench.hashes(), bench.files()
    for line in ("correct -c finetune --crt_epoch 4 --lr 0.1", "switch --router flips", "eval --state corrected"):
        bench.ran(line)
    assert bench.hashes() == before
    assert bench.files() == names


def test_another_seed_gives_other_draws_in_a_folder_of_its_own(empty):
    for seed in ("3", "4"):
        empty.ran(f"eval -e 1 --seed {seed} --limit 9")
    assert empty.names() == {"pretrain-seed3-limit9", "pretrain-seed4-limit9"}
    first, second = (empty.hashes(f"pretrain-seed{seed}-limit9") for seed in "34")
    assert first["weights.safetensors"] != second["weights.safetensors"]
    assert empty.json("pretrain-seed3-limit9/metrics.json").items() >= {"test_images": 9, "limit": 9}.items()


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ("-c finetune --crt_type crtunit --susp_ratio 0.5", "correct-finetune-seed5"),
        ("--susp_ratio 0.25", "correct-patch-replace-perfloss-seed5"),
        ("--susp-ratio 0.3 --susp-side random", "correct-patch-replace-perfloss-ratio0.3-random-seed5"),
        ("--crt-type crtunit -n gaussian-blur --susp_side rear", "correct-patch-crtunit-perfloss-rear-seed5"),
    ],
)
def test_what_is_not_the_default_is_in_the_folder_s_name(empty, options, folder):
    empty.ran("eval -e 1 --seed 5 --lr 0.1")
    ranking = empty.rank_by_hand(empty.output / "mine.json")
    empty.ran(f"correct --seed 5 --crt_epoch 1 --ranking {ranking} {options}")
    assert empty.names() == {"pretrain-seed5", folder}


def test_a_ranking_of_one_s_own_is_used_and_recorded(pretrained):
    ranking = pretrained.rank_by_hand(pretrained.at("assess-mine") / "ranking.json")
    pretrained.ran(f"correct --crt_epoch 1 --ranking {ranking}")
    assert read_patch(pretrained, "correct-patch-replace-perfloss").channels == {"conv1": [12, 13, 14, 15]}
    record = pretrained.json("correct-patch-replace-perfloss/run.json")
    name = f"{pretrained.slug}/resnet8/assess-mine/ranking.json"
    assert record["inputs"][name] == hashlib.sha256(ranking.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def estimated(chain, tmp_path_factory):
    """Ratio estimation over two ratios, and the patch that takes the ratio from it."""
    bench = chain.copy(tmp_path_factory.mktemp("estimated") / "output", "pretrain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ratio_estimation, "RATIOS", (0.5, 0.75))
        said = bench.ran("select -f ratioestim --crt_epoch 2 --lr 0.2").out
    return bench, said


def test_ratio_estimation_leaves_the_curve_and_the_ratio(estimated):
    bench, said = estimated
    assert bench.files("assess-ratioestim") == {*RANKED, "curve.csv", "curve.png"}
    ranking = bench.json("assess-ratioestim/ranking.json")
    curve = ranking["curve"]
    assert list(curve) == ["0.5", "0.75"]
    best = max(curve.values(), key=lambda point: point["mean"])
    within = [float(r) for r, point in curve.items() if point["mean"] >= best["mean"] - best["standard_error"]]
    assert ranking["ratio"] == min(within)
    assert all(point["mean"] == pytest.approx(np.mean(point["levels"])) for point in curve.values())
    assert f"[info] estimated ratio {ranking['ratio']:g}; written to {bench.at('assess-ratioestim')}" in said
    table = pd.read_csv(bench.at("assess-ratioestim") / "curve.csv")
    assert list(table) == ["ratio", *LEVELS, "mean", "standard_error"]
    for row, (ratio, point) in zip(table.itertuples(index=False), curve.items(), strict=True):
        expected = [float(ratio), *point["levels"], point["mean"], point["standard_error"]]
        assert list(row) == pytest.approx(expected, rel=1e-5)
    assert ranking["method"] == "random"
    assert bench.json("assess-ratioestim/run.json")["outputs"] == bench.hashes("assess-ratioestim")


def test_the_command_that_ratio_estimation_names_patches_at_the_estimated_ratio(estimated):
    bench, said = estimated
    command = re.search(r"^\[info\] next: (.+)$", said, re.MULTILINE)
    assert bench.type_in(f"{command.group(1)} --crt_epoch 1 --device cpu").status == 0
    metrics = bench.json("correct-patch-replace-ratioestim/metrics.json")
    assert metrics["ratio"] == bench.json("assess-ratioestim/ranking.json")["ratio"] >= 0.5
    assert (metrics["ranking"], metrics["side"]) == ("random", "front")


def test_a_ratio_that_is_given_goes_before_the_estimated_one_and_lies_apart(estimated):
    bench, _said = estimated
    bench.ran("correct -f ratioestim --crt_epoch 1 --susp_ratio 0.25")
    assert bench.json("correct-patch-replace-ratioestim-ratio0.25/metrics.json")["ratio"] == 0.25


def test_the_ratio_estimated_for_correction_units_is_used_for_them(pretrained, monkeypatch):
    monkeypatch.setattr(ratio_estimation, "RATIOS", (0.5,))
    kind = "--crt_type crtunit --susp_side rear"
    pretrained.ran(f"select -f ratioestim --crt_epoch 1 {kind}")
    assert "assess-ratioestim-crtunit-rear" in pretrained.names()
    pretrained.ran(f"correct -f ratioestim --crt_epoch 1 {kind}")
    assert pretrained.json("correct-patch-crtunit-ratioestim-rear/metrics.json")["ratio"] == 0.5


def is_share_of(percent: float, count: int) -> bool:
    return abs(percent * count / 100 - round(percent * count / 100)) < 1e-6


def read_patch(bench, stage: str) -> Patch:
    path = bench.at(stage) / "patch.safetensors"
    return Patch.from_bytes(path.read_bytes(), path)


def base_and_test(bench) -> tuple[Classifier, sources.Images, GaussianBlur]:
    """Return the base model, built here from the weights file, the test images, and their blur."""
    state = safetensors.torch.load_file(bench.at("pretrain") / "weights.safetensors")
    model = Classifier(ARCHITECTURES["resnet8"](3), [0.0] * 3, [1.0] * 3)
    model.load_state_dict(state)
    images = sources.load(f"folder:{bench.data}", Path("data"), 2021, Sizing(32)).test
    return model.eval(), images, GaussianBlur(SIGMAS)


@torch.inference_mode()
def accuracy_of(model, images: sources.Images, blur: GaussianBlur, level: int, batch_size: int = 24) -> float:
    """Return accuracy in percent at one level of the blur."""
    pixels = blur(views.to_float(images.pixels), level)
    predictions = torch.cat([model(part).argmax(1) for part in pixels.split(batch_size)])
    return 100 * (predictions == images.labels).double().mean().item()


@pytest.mark.parametrize("kind", ["-c finetune", "-c patch --crt_type replace", "-c patch --crt_type crtunit"])
def test_corrections_in_bfloat16_are_near_those_in_float32(chain, tmp_path, kind):
    losses = []
    for amp in ("", "--amp"):
        bench = chain.copy(tmp_path / f"bench{amp}", "pretrain", "assess-perfloss")
        bench.ran(f"correct {kind} --crt_epoch 2 --lr 0.02 {amp}")
        (history,) = bench.root.glob("correct-*/history.csv")
        losses.append(pd.read_csv(history)["loss"])
    plain, rough = losses
    assert (plain != rough).all()
    assert rough.tolist() == pytest.approx(plain.tolist(), rel=0.1)
