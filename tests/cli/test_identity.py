"""Artifacts say what they are: no two runs that differ in a setting share a folder, and later stages find theirs."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re

import pytest

from deeppatch.cli import corrections, naming, options, parsing
from deeppatch.cli.main import COMMANDS
from deeppatch.errors import Contradictions

PREFIX = "python src/{script}.py"
# options of each stage that it accepts for the common command line and does not read
IDLE = {
    "pretrain": {"crt_epoch", "fs_method", "crt_method", "crt_type", "susp_ratio", "susp_side"},
    "assess": {"max_epoch", "crt_method", "crt_epoch", "lr", "momentum", "weight_decay"},
    "correct": {"max_epoch"},
    "evaluate": {"max_epoch", "crt_epoch", "lr", "momentum", "weight_decay"},
    "export": {"max_epoch", "crt_epoch", "lr", "momentum", "weight_decay", "amp"},
    "influence": set(),
    "decompose": set(),
    "modularize": set(),
    "compose": set(),
    "annotate": set(),
    "relearn": set(),
    "compare": set(),
}
# what later stages are told of earlier ones counts by its content, in the runs themselves
CONSUMED = {"weights", "ranking", "patch", "finetuned", "modules", "selection", "switched", "router_file"}
BOOKKEEPING = {"help", "version", "state", "print_completion"}
# further words that an option needs beside it
COMPANY = {
    ("assess", "crt_type"): "-f ratioestim", ("assess", "susp_ratio"): "-f taylor --refine 2",
    ("assess", "susp_side"): "-f ratioestim", ("assess", "refine"): "-f taylor", ("pretrain", "bias"): "--train",
    ("pretrain", "splits"): "--train --bias B", ("compare", "splits"): "--bias B",
    ("pretrain", "mean"): "--mean 0 0 0 --std 1 1 1", ("pretrain", "std"): "--mean 0 0 0 --std 1 1 1",
    ("decompose", "csg"): "mutual-info", ("decompose", "draws"): "essential", ("decompose", "lr"): "finetune",
    ("decompose", "max_epoch"): "finetune", ("decompose", "head_only"): "finetune", ("decompose", "action"): "",
    ("pretrain", "modular_weights"): "--modular",
    ("modularize", "scale_scores"): "--no_head", ("modularize", "tune_lr"): "--tune_epochs 1",
    ("modularize", "patience"): "--method ga", ("compose", "onnx"): "--assemble .",
    ("compose", "no_calibration"): "--assemble .",
    **{(stage, "hold_out"): "-n noise" for stage in ("pretrain", "assess", "correct", "evaluate", "export", "compare")},
    **{(stage, "severity"): "-n fog" for stage in ("pretrain", "assess", "correct", "evaluate", "export", "compare")},
    **{("compare", name): "--adapt tent" for name in ("stream", "per_corruption", "single", "adapt_batch")},
    ("compare", "attack_images"): "--attack all", ("compare", "gate"): "--require clean>=0",
    ("compare", "confident"): "--require clean>=0",
    ("correct", "statistics"): "-c interpolate", ("correct", "conditions"): "-c bank",
    ("correct", "filter_seed"): "-f random", ("correct", "block"): "-c surgical",
    ("correct", "max_clean_drop"): "-c bank", ("correct", "unlabelled"): "-c statistics --unlabelled .",
    ("evaluate", "experts"): "--router benefit", ("evaluate", "neighbours"): "-n spatial",
    **{("correct", option): f"-c {peer}" for peer, options in corrections.PEER_OPTIONS.items() for option in options},
    ("annotate", "features"): "--bias B --method hybrid", ("relearn", "labels"): "-d folder:photos",
    **{(stage, "coreset_start"): "--bias B --method coreset" for stage in ("annotate", "relearn")},
    **{("relearn", name): "--bias B --pseudo_labels published" for name in ("ramp", "pseudo_weight", "pool_weights")},
}  # fmt: skip
NO_OTHER_CHOICE = "another"
# options that the common command line has, and that a stage refuses off their default
REFUSED = {("export", "crt_method"), ("export", "amp")}
USUAL = {"decompose": "validate", "annotate": "--bias B", "relearn": "--bias B"}


def parse(stage: str, line: str):
    module = importlib.import_module(f"deeppatch.cli.{stage}.command")
    return parsing.parse(module, line.split(), PREFIX)


def stage_options() -> list[tuple[str, argparse.Action]]:
    """Every option of every stage, as its parser has it."""
    found = []
    for stage in COMMANDS.values():
        if stage != "demo":
            parser = parsing.parser_of(importlib.import_module(f"deeppatch.cli.{stage}.command"), PREFIX)
            found += [(stage, action) for action in parser._actions if action.dest not in BOOKKEEPING]
    return found


def changed(action: argparse.Action, file: str) -> str:
    """Spell an option with a value that is not its default."""
    flag = action.option_strings[-1] if action.option_strings else ""
    if action.nargs == 0:
        return flag
    if action.dest in ("model", "encoder", "weak"):
        return f"{flag} resnet20a"
    if action.choices:
        choices = [*sorted(str(each) for each in action.choices), NO_OTHER_CHOICE]
        return f"{flag} {next(each for each in choices if each != str(action.default))}"
    if action.type is not None and getattr(action.type, "__name__", "") in ("Path", "corrected_file"):
        return f"{flag} {file}"
    special = {
        "dataset": "cifar10", "target": "3", "join": "outlier", "budget": "7", "sensitive": "0.1 0.4", "race": "0.2",
        "val_share": "0.3", "susp_ratio": "0.4", "mean": "0.1 0.1 0.1", "std": "2 2 2", "momentum": "0.5",
        "weak": "rescnn_weak", "noise_type": "fog", "require": "clean>=0", "hold_out": "shot_noise",
        "calibrate_on": "test:5", "alarm": "0.1", "modular_weights": "1 2 3",
        "robust_threshold": "0.1", "crossover_prob": "0.1", "eta": "0.1", "tau": "0.3",
    }  # fmt: skip
    return f"{flag} {special.get(action.dest, '3')}"


@pytest.mark.parametrize(("stage", "action"), stage_options(), ids=lambda each: getattr(each, "dest", each))
def test_an_option_changes_the_identity_or_cannot_change_the_result(stage, action, tmp_path):
    file = tmp_path / "given.json"
    file.write_text("{}")
    company = COMPANY.get((stage, action.dest), USUAL.get(stage, ""))
    if action.dest in ("bias",) and stage in ("annotate", "relearn"):
        company = "-d folder:photos"
    if action.dest == "gpu":
        company += " --device cuda"
    words = changed(action, str(file))
    if (stage, action.dest) in REFUSED:
        with pytest.raises(Contradictions):
            parse(stage, words)
        return
    if stage == "decompose" and action.dest == "action":
        before, after = parse(stage, "essential"), parse(stage, "validate")
    else:
        before = parse(stage, company)
        another = {action.dest: NO_OTHER_CHOICE}
        after = (
            dataclasses.replace(before, **another) if NO_OTHER_CHOICE in words else parse(stage, f"{company} {words}")
        )
    names = [naming.model_folder(each) / naming.artifact_id(stage, each, {}) for each in (before, after)]
    if action.dest in {*naming.INCIDENTAL} - {"output_dir"} or action.dest in IDLE[stage]:
        assert names[0] == names[1]
        assert action.dest not in naming.hashed(stage, after)
    elif action.dest in CONSUMED and not (stage == "pretrain" and action.dest == "weights"):
        digests = [naming.artifact_id(stage, before, {"base": digest}) for digest in ("aa", "ab")]
        assert len({*digests, names[0].name}) == 3
    else:
        assert names[0] != names[1]


def test_the_short_list_of_what_changes_nothing():
    assert naming.INCIDENTAL == ("device", "gpu", "mem", "data_dir", "output_dir", "resume", "sink", "onnx")


@pytest.mark.parametrize(
    ("stage", "line", "name"),
    [
        ("pretrain", "", "pretrain"), ("assess", "", "assess-perfloss"),
        ("correct", "", "correct-patch-replace-perfloss"),
        ("correct", "-c finetune --limit 9", "correct-finetune-limit9"), ("influence", "", "influence"),
        ("evaluate", "--router flips", "switch-patch-replace-perfloss-flips"), ("modularize", "", "modularize-grad"),
        ("annotate", "--bias B", "annotate-hybrid-biasB"), ("relearn", "--bias B", "relearn-hybrid-biasB"),
        ("relearn", "--bias B --method prior", "relearn-prior-biasB"),
        ("relearn", "--bias B --pseudo_labels published", "relearn-hybrid-published-biasB"),
        ("relearn", "--bias B --scope head --no_prior", "relearn-hybrid-head-no-prior-biasB"),
        ("pretrain", "--train --bias B", "pretrain-biasB"), ("decompose", "sweep", "decompose-sweep"),
    ],
)  # fmt: skip
def test_default_commands_keep_their_plain_names(stage, line, name):
    assert naming.artifact_id(stage, parse(stage, line), {}) == name


def test_a_recipe_is_one_setting_and_what_is_given_beside_it_another():
    plain, weak = parse("pretrain", ""), parse("pretrain", "--recipe weak")
    same, longer = parse("pretrain", "--recipe weak --lr 0.01"), parse("pretrain", "--recipe weak -e 3")
    names = [naming.artifact_id("pretrain", each, {}) for each in (plain, weak, same, longer)]
    assert names[1] == names[2]
    assert len(set(names)) == 3


def test_files_count_by_content_not_by_path(tmp_path):
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(content)
    names = [
        naming.artifact_id("relearn", parse("relearn", f"-d folder:photos --labels {tmp_path}/{name}"), {})
        for name in "abc"
    ]
    assert names[0] == names[1] != names[2]


# --- finding what earlier stages left


def test_a_later_stage_takes_the_default_run_where_there_is_one(empty):
    empty.ran("eval -e 1 --lr 0.1")
    first = empty.at("pretrain").name
    default = empty.root / "pretrain"
    empty.at("pretrain").rename(default)
    empty.ran("eval -e 1 --lr 0.2")
    said = empty.ran("select -f activation").out
    assert f"inherited {default}/weights.safetensors" in said
    assert first != "pretrain"


def test_of_several_runs_one_must_be_chosen_and_the_message_says_how_they_differ(empty):
    empty.ran("eval -e 1 --lr 0.1")
    empty.ran("eval -e 1 --lr 0.2")
    said = empty.refused("select -f activation")
    assert said.startswith("pretrain has 2 finished runs for this: pretrain-")
    differences = re.findall(r"pretrain\S* \(([^)]*)\)", said)
    assert sorted(differences) == [f"max_epoch 1, lr {lr}, batch_size 12" for lr in (0.1, 0.2)], "and nothing else"
    chosen = said.split("choose one with ")[1]
    assert chosen.startswith("--base ")
    empty.ran(f"select -f activation {chosen}")


def test_with_another_base_the_run_with_default_options_is_taken(empty):
    empty.ran("eval -e 1 --lr 0.1")
    empty.ran("select -f activation")
    empty.ran("select -f activation --refine 2")
    empty.ran("correct -f activation --crt_epoch 1")
    (plain,) = (path for path in empty.root.glob("assess-activation-*") if "refine" not in path.name)
    (corrected,) = empty.root.glob("correct-patch-replace-activation-*")
    record = json.loads((corrected / "run.json").read_text())
    assert any(path.endswith(f"/{plain.name}/ranking.json") for path in record["inputs"])


def test_two_corrections_that_differ_in_a_rate_do_not_overwrite_each_other(pretrained):
    lines = [f"correct -c finetune --crt_epoch 1 --lr {lr}" for lr in (0.1, 0.2)]
    for line in lines:
        pretrained.ran(line)
    folders = sorted(pretrained.root.glob("correct-finetune-*"))
    assert len(folders) == 2
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    said = pretrained.refused("eval --state corrected -c finetune")
    assert "correct has 2 finished runs for this" in said
    pretrained.ran(f"eval --state corrected -c finetune --finetuned {folders[0]}/weights.safetensors")
    assert {path: path.read_bytes() for folder in folders for path in folder.iterdir()} == before


def test_what_is_missing_is_told_with_the_finished_runs_that_differ(bench):
    said = bench.refused("correct -f taylor")
    assert f"{bench.root}/assess-taylor/ranking.json is missing; finished runs differ: assess-" in said
    assert "fs_method featswap" in said
    assert said.endswith(f"--output_dir {bench.output}")
    assert "; make it with: python src/select.py " in said


def test_a_run_of_the_base_at_hand_comes_before_one_of_another(bench):
    """With two bases, each with its ranking, --base alone is enough to find the ranking that goes with it."""
    bench.ran("eval -e 1 --lr 0.3")
    bases = sorted(bench.root.glob("pretrain-*/weights.safetensors"))
    assert len(bases) == 2
    other = next(path for path in bases if path.parent.name != "pretrain" and '"max_epoch": 1' in
                 (path.parent / "run.json").read_text())  # fmt: skip
    bench.ran(f"select --base {other}")
    said = bench.ran(f"correct --crt_epoch 1 --base {other}").out
    (ranking,) = [path for path in bench.root.glob("assess-perfloss-*/ranking.json") if str(path) in said]
    assert str(other.relative_to(bench.output)) in (ranking.parent / "run.json").read_text()


def test_the_base_may_be_called_weights_still(pretrained):
    weights = pretrained.at("pretrain/weights.safetensors")
    for name in ("--base", "--weights"):
        assert f"inherited {weights}" in pretrained.ran(f"select -f activation {name} {weights}").out


# --- data and classes


def test_images_that_came_after_pretrain_are_noticed(empty, waves, tmp_path):
    folder = waves(tmp_path / "photos")
    empty.ran(f"eval -e 1 -d folder:{folder}")
    (folder / "train" / "class0" / "new.png").write_bytes((folder / "train" / "class0" / "000.png").read_bytes())
    said = empty.refused(f"select -f activation -d folder:{folder}")
    assert "/weights.safetensors was made from other data: " in said
    assert "train images then, " in said
    assert "make it again with: python src/eval.py" in said


def test_an_image_that_was_replaced_is_noticed(empty, waves, tmp_path):
    folder = waves(tmp_path / "photos")
    empty.ran(f"eval -e 1 -d folder:{folder}")
    (folder / "test" / "class0" / "000.png").write_bytes((folder / "test" / "class1" / "000.png").read_bytes())
    assert "other test images or labels than then" in empty.refused(f"select -f activation -d folder:{folder}")


def test_other_subsets_of_the_same_split_are_no_other_data(pretrained):
    """A ranking made on a few images may be handed on; another split may not."""
    weights = pretrained.at("pretrain/weights.safetensors")
    said = pretrained.ran(f"select -f activation --limit 20 --base {weights}").out
    (ranking,) = pretrained.root.glob("assess-activation-limit20-*/ranking.json")
    assert str(ranking.parent) in said
    pretrained.ran(f"correct -f activation --crt_epoch 1 --ranking {ranking}")
    refused = pretrained.refused(f"select -f activation --val_share 0.4 --base {weights}")
    assert "was made from other data: " in refused


def test_a_class_that_is_called_otherwise_is_noticed_with_both_sides(empty, waves, tmp_path):
    folder = waves(tmp_path / "photos")
    empty.ran(f"eval -e 1 -d folder:{folder}")
    weights = next(empty.output.rglob("weights.safetensors"))
    for part in ("train", "test"):  # the order of the classes changes with it
        (folder / part / "class0").rename(folder / part / "zebra")
    told = "class0, class1, class2 there, class1, class2, zebra in "
    assert told in empty.refused(f"select -f activation -d folder:{folder}")
    assert told in empty.refused(f"eval -d folder:{folder} --weights {weights}")


def test_one_s_own_prefix_of_options_is_spelled_with_base():
    assert "--base w.pt" in options.command_for("assess", parse("assess", "--weights w.pt"))


def test_training_anew_is_not_said_to_change_nothing():
    """Under --bias it is the only way, so that it is no part of the name."""
    options = parse("pretrain", "-m resnet8 -d digits --train --bias B")
    assert naming.unused_options("pretrain", options) == []


def test_what_the_correction_of_the_prior_does_not_read_is_said_to_change_nothing():
    options = parse("relearn", "-d digits --bias B --method prior --budget 30 --epochs 3 --trust_prior --amp")
    assert naming.unused_options("relearn", options) == ["budget", "epochs"]
    trained = parse("relearn", "-d digits --bias B --budget 30 --epochs 3 --trust_prior --amp")
    assert naming.unused_options("relearn", trained) == []
    assert naming.idle_in("relearn", options, "epochs") == "relearn --method prior"
    assert naming.idle_in("correct", parse("correct", "-d digits -c bank --lr 0.5"), "lr") == "correct -c bank"
    assert naming.idle_in("correct", parse("correct", "-d digits -c bank -e 7"), "max_epoch") == "correct"
