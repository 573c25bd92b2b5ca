"""compare as a command: what it finds and leaves out, that nothing is measured twice, and the gate."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from deeppatch.adapt import cells
from deeppatch.artifacts import tensors_from_bytes, tensors_to_bytes
from deeppatch.attack import Schedule
from deeppatch.cli.compare import loading
from deeppatch.ledger import attacking, measuring
from deeppatch.ledger.ledger import Ledger
from deeppatch.metrics import DRAWS
from deeppatch.report import sinks

NETWORKS = {
    "pretrained", "finetuned", "patched always on (patch-crtunit-featswap-ratio0.5-rear)",
    "patched always on (patch-replace-perfloss)", "switched (patch-crtunit-featswap-ratio0.5-rear-flips)",
    "switched (patch-replace-perfloss-flips)", "switched (patch-replace-perfloss-probe)",
    "switched (patch-replace-perfloss-probe-batch)",
}  # fmt: skip
FEW = ("pretrain", "correct-finetune", "correct-patch-replace-perfloss", "switch-patch-replace-perfloss-probe")


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """A bootstrap of 200 draws."""
    with pytest.MonkeyPatch.context() as patch:
        frame = Ledger.frame
        patch.setattr(Ledger, "frame", lambda ledger, draws=200: frame(ledger, min(draws, 200)))
        assert DRAWS > 200
        yield


@pytest.fixture(scope="module")
def compared(chain, tmp_path_factory):
    """A copy of what the chain left, with a comparison of everything, and what that said."""
    bench = chain.copy(tmp_path_factory.mktemp("compared") / "output")
    return bench, bench.ran("compare").out


@pytest.fixture
def few(compared, tmp_path):
    """A copy of the default chain, with the cells of its networks."""
    return compared[0].copy(tmp_path / "output", *FEW, "cells")


@pytest.fixture
def forward_passes(monkeypatch):
    """The names of the networks of every view that is measured."""
    seen = []
    whole = measuring.answers_on

    def counted(stream, networks, **more):
        seen.extend((name, stream.view.name) for name in networks)
        return whole(stream, networks, **more)

    monkeypatch.setattr(measuring, "answers_on", counted)
    return seen


def ledger_of(bench, name="compare"):
    return pd.read_csv(bench.at(f"{name}/ledger.csv"))


def accuracy(table, network, view="clean", severity=0):
    rows = table[(table.network == network) & (table["view"] == view) & (table.severity == severity)
                 & (table.measure == "accuracy")]  # fmt: skip
    assert len(rows) == 1, (network, view, severity)
    return rows.estimate.iloc[0]


def test_all_networks_of_all_stages_are_found_and_agree_with_evaluate(compared):
    bench, _said = compared
    table = ledger_of(bench)
    assert set(table.network) == NETWORKS
    known = bench.json("switch-patch-replace-perfloss-probe/metrics.json")["accuracy_percent"]
    named = {"pretrained": "pretrained", "finetuned": "finetuned",
             "patched always on": "patched always on (patch-replace-perfloss)",
             "switched": "switched (patch-replace-perfloss-probe)"}  # fmt: skip
    for theirs, ours in named.items():
        for view in ("clean", "mixed", "blurred"):
            assert accuracy(table, ours, view) == pytest.approx(known[theirs][view], abs=1e-3)
        assert accuracy(table, ours, "gaussion", 3) == pytest.approx(known[theirs]["s=1.5"], abs=1e-3)
    batch = table[table.network == "switched (patch-replace-perfloss-probe-batch)"]
    assert "mixed" not in set(batch["view"])
    assert "clean" in set(batch["view"])


def test_what_is_left_and_what_is_said(compared):
    bench, said = compared
    assert bench.files("compare") == {"ledger.csv", "ledger.json", "report.html", "model-card.md", "run.json"}
    assert "against pretrained, with 95 % intervals over images" in said
    assert "finetuned" in said
    assert "blurred: the mean over the levels of the published blur (gaussion)" in said
    assert "degraded:" not in said, "which is the same here"
    assert " over pretrained on blurred images" in said or " against pretrained on blurred images" in said
    left = bench.json("compare/ledger.json")
    assert left["base"]["name"] == "pretrained"
    assert "ranks" not in left["about"], "the same bytes by any number of processes"
    table = ledger_of(bench)
    for name, network in left["networks"].items():
        assert network["clean_acc"] == pytest.approx(accuracy(table, name) / 100, abs=1e-6)
        assert network["corruptions_acc"] is None, "blur is none of the common corruptions"
        assert set(network["corruptions"]["gaussion"]) == set("123456")
    switched = left["networks"]["switched (patch-replace-perfloss-probe)"]
    sizes = [bench.at(f"{folder}/{file}").stat().st_size for folder, file in (
        ("correct-patch-replace-perfloss", "patch.safetensors"),
        ("switch-patch-replace-perfloss-probe", "router.safetensors"))]  # fmt: skip
    assert switched["bytes"] == sum(sizes)
    assert switched["facts"]["command"].startswith("python src/switch.py ")
    assert left["networks"]["pretrained"]["bytes"] == 0
    assert "date" not in left["about"]
    assert set(left["definitions"]) >= {"accuracy", "change", "blurred"}


def test_the_page_shows_images_that_were_degraded_again_and_is_the_verdict_that_is_printed(compared):
    bench, said = compared
    page = bench.at("compare/report.html").read_text()
    assert 0 < page.count('src="data:image/png;base64,') <= 20
    (verdict,) = re.findall(r'<section class="verdict.*?<p>(.*?)</p>', page, re.DOTALL)
    assert f"\n{html.unescape(verdict)}\n" in said
    for name in NETWORKS:
        assert f"<h3>{name}</h3>" in page.partition("How it was made")[2]
    head = yaml.safe_load(bench.at("compare/model-card.md").read_text().split("---\n")[1])
    assert verdict.startswith(head["model_name"])


def test_a_sink_gets_the_means(few, monkeypatch):
    logged = {}
    sink = SimpleNamespace(
        log_scalar=lambda name, value, step: logged.update({name: value}), close=lambda: None,
        log_file=lambda path: logged.update({path.name: path}),
    )  # fmt: skip
    monkeypatch.setattr(sinks, "open_sink", lambda *_arguments: sink)
    few.ran("compare --sink mlflow")
    table = ledger_of(few)
    assert logged["compare/finetuned accuracy blurred"] == pytest.approx(
        accuracy(table, "finetuned", "blurred"), abs=1e-3
    )
    assert {"report.html", "model-card.md", "ledger.csv"} <= logged.keys()


def test_a_second_run_measures_nothing_and_leaves_the_same_bytes(few, forward_passes):
    said = few.ran("compare").out
    assert forward_passes == []
    before = few.hashes("compare")
    assert "left out" not in said
    few.ran("compare")
    assert few.hashes("compare") == before
    shutil.rmtree(few.at("cells"))
    few.ran("compare")
    assert few.hashes("compare") == before
    assert len(forward_passes) == 4 * 8


def test_other_degradations_cost_their_own_cells_and_held_out_ones_are_marked(few, forward_passes):
    few.ran("compare -n gaussion,fog,snow --severity 1,5 --hold_out snow")
    names = {view for _name, view in forward_passes}
    # the levels of blur are called otherwise in a list, and are found by what they show
    assert names == {"fog-1", "fog-5", "snow-1", "snow-5", "mixed", *(f"gaussion-s={s / 2:g}" for s in range(1, 7))}
    (folder,) = few.root.glob("compare-*without-snow*")
    left = json.loads((folder / "ledger.json").read_text())
    assert {view["name"] for view in left["views"] if view["held_out"]} == {"snow-1", "snow-5"}
    assert set(left["networks"]["switched"]["corruptions"]) == {"gaussion", "fog", "snow"}
    shares = left["networks"]["switched"]["corruptions"]
    mean = sum(shares[kind][level] for kind in ("fog", "snow") for level in "15") / 4
    assert left["networks"]["switched"]["corruptions_acc"] == pytest.approx(mean)
    assert left["networks"]["pretrained"]["corruptions_mce"] == pytest.approx(100)


def test_networks_of_another_base_and_of_other_images_are_left_out_with_the_reason(bench, waves, tmp_path):
    weights = bench.at("pretrain/weights.safetensors")
    bench.ran("eval -e 1 --lr 0.3")
    (other,) = (path for path in bench.root.glob("pretrain-*/weights.safetensors") if path != weights)
    bench.ran(f"correct -c finetune --crt_epoch 1 --base {other}")
    said = bench.ran(f"compare --base {weights}").out
    (line,) = [line for line in said.splitlines() if "left out: " in line]
    assert "was trained on other base weights" in line
    assert line.count("correct-finetune-") >= 1
    record = bench.at("correct-patch-crtunit-featswap-ratio0.5-rear/run.json")
    content = json.loads(record.read_text())
    content["data"]["parts"]["test"]["digest"] = "other"
    record.write_text(json.dumps(content))
    said = bench.ran(f"compare --base {weights}").out
    (line,) = [line for line in said.splitlines() if "left out: " in line]
    assert "(made from other data: other test images or labels than then)" in line


def test_a_damaged_network_is_left_out_and_where_it_was_given_refused(few):
    path = few.at("correct-finetune/weights.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + b"\0\1\2\3")
    said = few.ran("compare").out
    assert f"left out: {path.parent.name} ({path} is damaged or was changed by hand; make it again with: " in said
    assert set(ledger_of(few).network) == {"pretrained", "patched always on", "switched"}
    assert "is damaged or was changed by hand" in few.refused(f"compare {path.parent}")


def test_files_and_folders_are_taken_instead(few, forward_passes, tmp_path):
    tuned, patch = few.at("correct-finetune"), few.at("correct-patch-replace-perfloss/patch.safetensors")
    few.ran(f"compare {tuned} --networks {patch}")
    assert forward_passes == [], "the same networks, however they are named"
    (folder,) = few.root.glob("compare-*")
    assert set(pd.read_csv(folder / "ledger.csv").network) == {"pretrained", "finetuned", "patched always on"}
    copied = tmp_path / "mine.safetensors"
    shutil.copy(tuned / "weights.safetensors", copied)
    few.ran(f"compare {copied}")
    assert forward_passes == []
    folders = {path.name for path in few.root.glob("compare-*")}
    assert len(folders) == 2, "what was compared is part of the name"


def test_two_outputs_side_by_side(few, compared, tmp_path):
    """What another output folder has is measured on the same images, with the same base."""
    other = compared[0].copy(tmp_path / "other", "pretrain", "correct-finetune")
    path = other.at("correct-finetune/weights.safetensors")
    state, meta = tensors_from_bytes(path.read_bytes(), path)
    state["network.fc.bias"] += 1
    path.write_bytes(tensors_to_bytes(state, meta))
    record = json.loads((path.parent / "run.json").read_text())
    (record["outputs"][path.name],) = [other.hashes("correct-finetune")[path.name]]
    (path.parent / "run.json").write_text(json.dumps(record))
    few.ran(f"compare {few.output} {other.output}")
    (folder,) = few.root.glob("compare-*")
    assert set(pd.read_csv(folder / "ledger.csv").network) == {
        "pretrained", "output: finetuned", "output: patched always on", "output: switched", "other: finetuned",
    }  # fmt: skip


def test_a_subset_is_measured_with_networks_that_were_made_on_all_images(few, forward_passes):
    few.ran("compare --limit 6")
    table = ledger_of(few, "compare-limit6")
    assert set(table.network) == {"pretrained", "finetuned", "patched always on", "switched"}
    assert set(table.n) == {6}
    assert len(forward_passes) == 4 * 8


def test_test_images_that_a_router_was_calibrated_on_are_in_no_row(few, forward_passes):
    record = few.at("switch-patch-replace-perfloss-probe/run.json")
    content = json.loads(record.read_text())
    content["settings"]["calibrate_on"] = "test:9"
    record.write_text(json.dumps(content))
    said = few.ran("compare").out
    assert "left out of every row: 9 test images that routers were calibrated on" in said
    assert forward_passes == [], "cells are of all images"
    table = ledger_of(few)
    assert set(table.n) == {24 - 9}
    right = accuracy(table, "pretrained") * (24 - 9) / 100
    assert right == pytest.approx(round(right), abs=1e-3)
    said = few.ran("compare --limit 6").out
    assert "calibrated on 9 test images, of another subset than --limit's" in said


def test_routers_calibrated_on_test_images_and_between_several_networks(few):
    said = few.ran("switch -c finetune --router benefit-both --calibrate_on test:9").out
    assert any(line.startswith("[info] switched ") and " pretrained on blurred images and " in line
               for line in said.splitlines()), "evaluate gives a verdict, too"  # fmt: skip
    (first,) = few.root.glob("switch-finetune-benefit-both-*")
    patch = few.at("correct-patch-replace-perfloss/patch.safetensors")
    few.ran(f"switch -c finetune --router benefit-both --experts {patch}")
    (second,) = (path for path in few.root.glob("switch-finetune-benefit-both-*") if path != first)
    said = few.ran("compare").out
    assert "left out of every row: 9 test images" in said
    assert "left out: " not in said
    table = ledger_of(few)
    name = "switched finetune (calibrate on test:9)"
    other = "switched finetune (calibrate on val, experts patch-replace-perfloss)"
    assert {name, other} < set(table.network)
    known = json.loads((first / "metrics.json").read_text())["accuracy_percent"]["switched"]
    for view in ("clean", "blurred"):  # of the same 15 images
        assert accuracy(table, name, view) == pytest.approx(known[view], abs=1e-3)
    before = set(few.root.glob("compare-*"))
    assert "left out of every row" not in few.ran(f"compare {second}").out
    (folder,) = set(few.root.glob("compare-*")) - before
    rows = pd.read_csv(folder / "ledger.csv")
    known = json.loads((second / "metrics.json").read_text())["accuracy_percent"]["switched"]
    for view in ("clean", "blurred", "mixed"):
        assert accuracy(rows, "switched finetune", view) == pytest.approx(known[view], abs=1e-3)


@pytest.mark.parametrize("method", ["norms --crt_epoch 1", "bank", "interpolate", "surgical --crt_epoch 1"])
def test_every_correction_of_a_whole_network_is_found(few, method):
    few.ran(f"correct -c {method}")
    name = method.split()[0]
    few.ran("compare")
    network = few.json("compare/ledger.json")["networks"][name]
    left = few.json(f"correct-{name}/metrics.json")
    assert network["bytes"] == left["stored_bytes"]
    assert network["passes"] == left["passes"]["train"]
    assert network["method"] == name


def test_runs_that_differ_by_seed_have_a_row_for_their_mean(few):
    """The same base, as published weights are, under another seed."""
    shutil.copytree(few.at("pretrain"), few.root / "pretrain-seed7-000000")
    record = few.root / "pretrain-seed7-000000" / "run.json"
    content = json.loads(record.read_text())
    content["settings"]["seed"] = 7
    content["data"]["parts"] = {}  # another split has the same test images
    record.write_text(json.dumps(content))
    few.ran("correct -c finetune --crt_epoch 4 --lr 0.1 --seed 7")
    few.ran("compare")
    table = ledger_of(few)
    seeds = {"finetuned (finetune)", "finetuned (finetune-seed7)"}
    title = "finetune (mean of 2 seeds)"
    assert {*seeds, title} < set(table.network)
    assert accuracy(table, title) == pytest.approx(sum(accuracy(table, each) for each in seeds) / 2, abs=1e-3)
    assert title not in few.json("compare/ledger.json")["networks"]


def test_rows_say_in_which_settings_their_runs_differ(few):
    few.ran("correct -c finetune --crt_epoch 1 --lr 0.001")
    few.ran("correct -c finetune --crt_epoch 2 --lr 0.1")
    for seed in (1, 2):
        few.ran(f"correct -f random --filter_seed {seed} --crt_epoch 1")
    few.ran("compare")
    names = {
        "pretrained", "finetuned (1 epoch, lr 0.001)", "finetuned (2 epochs, lr 0.1)", "finetuned (4 epochs, lr 0.1)",
        "patched always on (patch-replace-perfloss)", "patched always on (random filters, seed 1)",
        "patched always on (random filters, seed 2)", "switched",
    }  # fmt: skip
    table = ledger_of(few)
    assert names < set(table.network)
    assert "patched always on (random filters, mean of 2 seeds)" in set(table.network)
    assert few.json("compare/ledger.json")["networks"].keys() == names
    page = few.at("compare/report.html").read_text()
    assert all(name in page for name in names)


def test_what_is_missing_to_judge_by_is_told_with_the_commands_that_make_it(few):
    few.ran("correct -f random --filter_seed 2 --crt_epoch 1")  # less than the other patch
    few.ran("correct -f random --filter_seed 2 --crt_epoch 4 --lr 0.2")
    said = few.ran("compare").out
    (line,) = (line for line in said.splitlines() if line.startswith("missing among these networks: "))
    told, _, commands = line.partition(" Make them with: ")
    assert told.endswith("filters at random over 5 seeds (1 found); normalisation statistics only, nothing trained.")
    assert "missing among these networks" in few.at("compare/report.html").read_text()
    loop, norms = re.fullmatch(r"for seed in 1 3 4 5; do (.*); done; (python .*)", commands).groups()
    assert few.type_in(norms).status == 0
    for seed in (1, 3, 4, 5):
        assert few.type_in(loop.replace("$seed", str(seed))).status == 0
    said = few.ran("compare").out
    assert "missing among" not in said
    assert {"norms, nothing trained", "patched always on (random filters, seed 5, 4 epochs, lr 0.2)"} < set(
        ledger_of(few).network
    )
    assert "missing among" not in few.ran(f"compare {few.at('correct-finetune')}").out, "which was asked for"


def test_that_a_router_was_calibrated_on_images_that_the_network_has_seen_stands_in_every_report(few):
    path = few.at("switch-patch-replace-perfloss-probe/metrics.json")
    content = json.loads(path.read_text())
    content["calibration"]["remark"] = "the network has seen the val images. So the bound does not hold"
    path.write_text(json.dumps(content))
    said = few.ran("compare").out
    remark = "switched: the network has seen the val images. So the bound does not hold."
    assert f"\n{remark}\n" in said
    page = few.at("compare/report.html").read_text()
    assert remark in page.partition('<section class="verdict')[2].partition("</section>")[0]
    card = few.at("compare/model-card.md").read_text()
    assert f"\n{remark}\n" in card
    assert f"\n- {remark}\n" in card


def test_the_change_over_the_levels_has_the_interval_that_evaluate_gives(compared):
    bench, said = compared
    evaluated = bench.json("switch-patch-replace-perfloss-probe/metrics.json")
    known = evaluated["difference_points"]["switched against pretrained"]
    table = ledger_of(bench)
    own = table[(table.network == "switched (patch-replace-perfloss-probe)") & (table.measure == "change")]
    for view in ("clean", "blurred", "mixed"):
        (row,) = own[(own["view"] == view) & (own.severity == 0)].to_dict("records")
        for name in ("estimate", "low", "high"):
            assert row[name] == pytest.approx(known[view][name], abs=1e-4), (view, name)
    kind = "in closed form for paired answers (Agresti and Min)"
    assert kind in said
    assert kind in evaluated["intervals"]
    assert kind in bench.at("compare/report.html").read_text()
    assert kind in bench.at("compare/model-card.md").read_text()


def test_results_of_decompose_are_found(few):
    few.ran("influence -k 5")
    few.ran("decompose finetune -e 1 --head_only")
    few.ran("compare")
    table = ledger_of(few)
    known = few.json("decompose-finetune-head/metrics.json")["test_accuracy_percent"]["best_epoch"]
    assert accuracy(table, "decomposed") == pytest.approx(known, abs=1e-3)


def test_results_of_relearn_are_found_and_judged(empty):
    empty.ran("eval -e 1 --lr 0.1 --train --bias B")
    empty.ran("annotate --bias B --budget 4 --views 2 --method gini")
    said = empty.ran("relearn --bias B --budget 4 --views 2 --method gini -e 1 --steps 2").out
    (line,) = (line for line in said.splitlines() if line.startswith("[info] relearned "))
    assert "the raw network on clean images. " in line
    empty.ran("compare --bias B")
    table = ledger_of(empty, "compare-biasB")
    assert set(table.network) == {"pretrained", "relearned (gini)"}
    known = empty.json("relearn-gini-budget4-views2-biasB/metrics.json")
    assert accuracy(table, "relearned (gini)") == pytest.approx(known["last_percent"], abs=1e-3)
    assert accuracy(table, "pretrained") == pytest.approx(known["raw_percent"], abs=1e-3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("compare --stream mixed --single 3", "--stream, --single: nothing reads this without --adapt"),
        ("compare --attack --attack_images 0", "--attack_images 0: give at least 1 image"),
        ("compare --confident", "--confident belongs to requirements; give some with --require"),
        ("compare --require clean", "--require 'clean' is no requirement: write NAME>=NUMBER or NAME<=NUMBER"),
        ("compare --require fog>=1", "--require fog>=+1: fog is not measured"),
        ("compare --require clean>=0 --gate switchd", "--gate switchd: there are the networks finetuned, patched"),
        ("compare no-such-file", "no-such-file: No such file or directory; check the path"),
    ],
)
def test_mistakes(few, line, said):
    assert few.refused(line).startswith(said)


def test_the_network_of_the_verdict_can_be_named_without_a_requirement(few):
    said = few.ran("compare --gate finetuned").out
    assert any(line.startswith("finetuned ") and " pretrained on blurred images" in line for line in said.splitlines())
    (folder,) = few.root.glob("compare-*")
    assert "was chosen because" not in (folder / "report.html").read_text()


def test_a_folder_without_a_network_is_refused(few):
    folder = few.at("pretrain")
    assert few.refused(f"compare {folder}").startswith(f"{folder} holds no network of resnet8 on folder:")


def test_a_base_of_another_subset_must_be_named(few):
    weights = few.at("pretrain/weights.safetensors")
    shutil.move(weights.parent, few.root / "pretrain-limit9")
    record = few.root / "pretrain-limit9" / "run.json"
    content = json.loads(record.read_text())
    content["settings"]["limit"] = 9
    record.write_text(json.dumps(content))
    said = few.refused("compare --limit 6")
    assert said.startswith(f"pretrain has left no network for these options in {few.root}, but for others: ")
    few.ran(f"compare --limit 6 {re.search('--base .*', said)[0]}")


def test_without_any_network_the_command_that_makes_one_is_named(pretrained):
    said = pretrained.refused("compare")
    assert said.startswith(f"nothing to compare under {pretrained.root}; make a network with: python src/correct.py ")
    assert "-c finetune" in said


def test_attacks_are_measured_where_they_are_asked_for(few, monkeypatch):
    monkeypatch.setattr(attacking.attack_networks, "__kwdefaults__", {
        **attacking.attack_networks.__kwdefaults__, "schedules": (Schedule(2, 0.5),)})  # fmt: skip
    said = few.ran("compare --attack --attack_images 6").out
    (folder,) = few.root.glob("compare-*")
    attacks = pd.read_csv(folder / "attack.csv")
    assert attacks["network"].tolist() == ["pretrained", "switched"] * 2
    assert set(attacks["images"]) == {6}
    assert (attacks["robust_accuracy"] <= attacks["accuracy"]).all()
    assert "robust accuracy: " in said
    page = (folder / "report.html").read_text()
    assert f"<td>{attacks['robust_accuracy'].iloc[0]:.2f}</td>" in page.partition("<h2>Attacks</h2>")[2]
    few.ran("compare --attack all --attack_images 6")
    (every,) = set(few.root.glob("compare-*")) - {folder}
    attacks = pd.read_csv(every / "attack.csv")
    assert set(attacks["network"]) == {"pretrained", "finetuned", "patched always on", "switched"}


def test_adaptation_and_latency_are_measured_where_they_are_asked_for(few, monkeypatch):
    asked = (
        "compare --adapt bn-1 bn-prior --stream mixed single --per_corruption 12 --single 2 --adapt_batch 6 --latency"
    )
    said = few.ran(asked).out
    (folder,) = few.root.glob("compare-*")
    adapted = pd.read_csv(folder / "adaptation.csv")
    names = ["pretrained", "finetuned", "patched always on", "switched"]
    assert set(adapted["row"]) == {*names, "bn-1", "bn-prior"}
    assert adapted.groupby("stream")["n"].unique().to_dict() == {"mixed": [72], "single": [12]}
    assert set(adapted["reference"]) == {"switched"}
    assert adapted[adapted["row"] == "switched"]["difference"].isna().all()
    assert (adapted["low"] <= adapted["accuracy"]).all()
    assert (adapted["accuracy"] <= adapted["high"]).all()
    mixed = adapted[adapted["stream"] == "mixed"].set_index("row")
    assert mixed["neighbours"].to_dict() == {**dict.fromkeys(names, False), "bn-1": True, "bn-prior": True}
    assert len(pd.read_csv(folder / "adaptation_by_level.csv")) == 2 * 6 * 6
    assert "bn-prior: a prior count of " in said
    assert "the stream mixed" in said
    assert "latency: milliseconds an image" in said
    page = (folder / "report.html").read_text()
    section = page.partition("<h2>Adapting at test time instead: the stream mixed</h2>")[2].partition("</section>")[0]
    row = mixed.loc["bn-1"]
    assert f"<td>{row['accuracy']:.2f} ({row['low']:.2f} to {row['high']:.2f})</td>" in section
    assert "gained over switched" in section
    assert "milliseconds per image" in page
    timed = pd.read_csv(folder / "latency.csv")
    assert timed.groupby("network", sort=False)["batch"].count().to_dict() == dict.fromkeys(names, 2)
    assert (timed["milliseconds"] > 0).all()
    before = few.hashes(folder.name)
    monkeypatch.setattr(cells, "run_streams", None)  # which would fail
    few.ran(asked)
    after = few.hashes(folder.name)
    assert {name for name in before if before[name] != after[name]} <= {"latency.csv", "report.html", "model-card.md"}
    assert "latency_ms" not in few.at(f"{folder.name}/ledger.json").read_text()


def test_what_cannot_be_measured_is_told_before_anything_is(compared, few, forward_passes):
    assert "--stream ordered: 5 images of" in few.refused("compare --adapt tent --per_corruption 5")
    assert "--attack: choose the network to attack with --gate: " in compared[0].refused("compare --attack")
    assert forward_passes == []


# --- the gate


@pytest.mark.parametrize(
    ("line", "status", "broken"),
    [
        ("--require clean>=-100 --require blurred>=-100", 0, []),
        ("--require clean>=+99", 1, ["clean>=+99"]),
        ("--require clean>=+99 --require flips<=100 --require gaussion:2>=99", 1, ["clean>=+99", "gaussion:2>=+99"]),
        ("--require bytes<=10 --gate finetuned", 1, ["bytes<=10"]),
        ("--require flips<=100 --confident", 0, []),
    ],
)
def test_a_gate_ends_with_status_1_and_a_line_for_each_broken_requirement(few, line, status, broken):
    result = few.run(f"compare {line}")
    assert result.status == status, result.err
    network = "finetuned" if "--gate" in line else "switched"
    assert [each.partition(" (")[0].rpartition(": ")[0] for each in result.err.splitlines()] == [
        f"broken: {network}: {each}" for each in broken
    ]
    (folder,) = few.root.glob("compare-*")
    outputs = json.loads((folder / "run.json").read_text())["outputs"]
    assert outputs.keys() == {"ledger.csv", "ledger.json", "report.html", "model-card.md", "gate.md"}
    page = (folder / "report.html").read_text()
    assert page.count('<b class="loss">BROKEN</b>') == len(broken)
    assert f"# {network}\n" in (folder / "model-card.md").read_text()
    summary = (folder / "gate.md").read_text()
    title = f"{len(broken)} of {line.count('--require')} requirements broken" if broken else "All requirements met"
    assert summary.startswith(f"## {title}: {network} against pretrained\n")
    assert summary.count("**no**") == len(broken)
    assert "`python src/compare.py " in summary


def test_a_mistake_in_a_requirement_is_status_2_also_where_the_gate_is_open(few):
    few.refused("compare --require clean>=-100 --require 'clean>=x'")


def test_which_of_several_networks_a_requirement_is_about_must_be_said(bench):
    said = bench.refused("compare --require clean>=0")
    assert said.startswith("--require: choose the network that must meet it with --gate: finetuned, patched always on")


@pytest.mark.parametrize(
    ("recorded", "given", "same"),
    [
        ("cifar10/m/correct-x/f", "output/cifar10/m/correct-x/f", True),
        ("/b/cifar10/m/correct-x/f", "/b/cifar10/m/correct-x/f", True),
        ("/b/cifar10/m/correct-x/f", "/a/cifar10/m/correct-x/f", False),
        ("cifar10/m/correct-x/f", "output/digits/m/correct-x/f", False),
    ],
)
def test_an_expert_is_found_again_by_its_whole_path(recorded, given, same):
    assert loading._names_the_same(Path(recorded), Path(given)) is same
