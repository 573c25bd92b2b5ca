from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from deeppatch.cli import main, parsing
from deeppatch.cli.demo import command
from deeppatch.errors import UserError

PREFIX = "python src/{script}.py"
METHODS = ["DeepPatch", "Decomposing the Deep", "CNNSplitter", "HybridRepair"]
BIASED = [
    "pretrain", "annotate-random-budget5pc-views2", "relearn-random-budget5pc-views2",
    "annotate-hybrid-budget5pc-views2", "relearn-hybrid-budget5pc-views2",
]  # fmt: skip
NETWORKS = ["pretrained", "finetuned", "patched always on", "switched", "oracle router"]


def parse(*arguments: str):
    return parsing.parse(command, arguments, PREFIX)


def test_the_demo_takes_the_small_network_and_the_embedded_digits():
    options = parse()
    assert (options.model, options.dataset, options.output_dir) == ("resnet8", "digits", Path("output"))


def test_the_demo_takes_the_options_that_change_neither_network_nor_data():
    options = parse("--output_dir", "elsewhere", "--device", "cpu", "--seed", "7", "-r", "--gpu", "0")
    assert (options.output_dir, options.device, options.seed, options.resume) == (Path("elsewhere"), "cpu", 7, True)


@pytest.mark.parametrize(
    "given",
    [
        "--model resnet32", "--dataset cifar10", "--weights w.pt", "--limit 10", "--data_dir d", "--batch_size 8",
        "--amp", "--lr 0.5", "--momentum 0.5", "--weight_decay 0", "--max_epoch 3", "--fs_method featswap",
        "--crt_method finetune", "--crt_type crtunit", "--crt_epoch 3", "--susp_ratio 0.5", "--susp_side rear",
        "--ranking r.json",
    ],
)  # fmt: skip
def test_the_demo_refuses_an_option_that_it_would_not_heed(given):
    with pytest.raises(UserError) as refusal:
        parse(*given.split())
    name = given.split()[0]
    assert str(refusal.value) == f"{name} is fixed in the demo; run the stages one by one to choose it"


def test_the_demo_names_all_such_options_at_once(launch, refusal):
    said = refusal(launch("demo", ["-m", "resnet32", "-e", "3", "--limit", "10", "--seed", "-1"]))
    assert re.findall(r"--(\w+)", said) == ["seed", "model", "limit", "max_epoch"]


def test_the_help_of_the_demo_shows_what_it_heeds(launch):
    text = " ".join(launch("demo", ["--help"]).out.split())
    assert "(default: resnet32)" not in text
    assert "--crt_epoch" not in text


def test_the_steps_are_the_stages_in_order_with_settings_that_parse():
    stages = [step.stage for step in command.STEPS]
    assert list(dict.fromkeys(stages)) == [
        "pretrain", "assess", "correct", "evaluate", "influence", "decompose", "modularize", "compose", "annotate",
        "relearn",
    ]  # fmt: skip
    for stage, arguments, _further in command.STEPS:
        module = importlib.import_module(f"deeppatch.cli.{stage}.command")
        options = parsing.parse(module, [*command.MODEL, *arguments], PREFIX)
        assert (options.model, options.dataset) == ("resnet8", "digits")
        if stage in ("assess", "correct", "evaluate"):
            assert options.fs_method == "featswap" or options.crt_method == "finetune"


def test_patch_and_fine_tuning_have_the_same_training():
    corrections = [step.arguments for step in command.STEPS if step.stage == "correct"]
    module = importlib.import_module("deeppatch.cli.correct.command")
    tuned, patch = (parsing.parse(module, [*command.MODEL, *arguments], PREFIX) for arguments in corrections)
    for name in ("crt_epoch", "lr", "momentum", "weight_decay", "batch_size", "limit", "amp"):
        assert getattr(tuned, name) == getattr(patch, name), name


def test_hybrid_repair_and_its_baseline_run_with_three_seeds_each():
    repairs = [step for step in command.STEPS if step.stage == "relearn" and "--compare" not in step.arguments]
    runs = [(step.arguments[step.arguments.index("--method") + 1], step.further) for step in repairs]
    assert sorted(runs) == [(method, seed) for method in ("hybrid", "random") for seed in (0, 1, 2)]


def test_the_demo_refuses_a_seed_without_successors():
    with pytest.raises(UserError, match="the demo uses the next 2 seeds too; give at most 2147483645"):
        parse("--seed", "2147483646")
    assert parse("--seed", "2147483645").seed == 2147483645


@pytest.fixture(scope="module")
def short(launch, runs_in, tmp_path_factory):
    """The demo with few images and one epoch a training: its result, and where it worked."""
    output = tmp_path_factory.mktemp("demo")
    once = {"-e": "1", "--crt_epoch": "1", "--weak_epoch": "1"}
    steps = [
        step._replace(
            arguments=[
                once.get(before, word) for before, word in zip([None, *step.arguments], step.arguments, strict=False)
            ]
        )
        for step in command.STEPS
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "STEPS", steps)
        patch.setattr(command, "MODEL", [*command.MODEL, "--limit", "20"])
        result = launch("demo", ["--output_dir", str(output), "--device", "cpu"])
        again = launch("demo", ["--output_dir", str(output), "--device", "cpu", "-r"])
    return result, again, output, runs_in(output / "digits" / "resnet8").names()


@pytest.mark.slow
def test_the_demo_shows_a_table_of_what_was_gained_and_what_it_cost(short):
    result, _again, _output, folders = short
    assert (result.status, result.err) == (0, "")
    last = result.out[result.out.rindex("\n$ python src/switch.py ") : result.out.index("\n$ python src/influence.py ")]
    assert re.search(r"^ *network +clean +s=0\.5 +s=1 +s=1\.5 +s=2 +s=2\.5 +s=3 +blurred +append +mixed$", last, re.M)
    for network in NETWORKS:
        assert re.search(rf"^ *{network}( +\d+\.\d\d){{10}}$", last, re.M)
    for network in NETWORKS[1:]:
        assert re.search(rf"^ *{network}( +\+\d+\.\d -\d+\.\d){{10}}$", last, re.M)
    assert "router: probe, one decision a sample" in last
    assert re.search(r"\[info\] demo: \d+ s in all; next: python src/eval\.py -m resnet32 -d cifar10\n$", result.out)
    assert folders == {
        "demo", "pretrain-limit20", "assess-featswap-limit20", "correct-finetune-limit20",
        "correct-patch-replace-featswap-limit20", "switch-patch-replace-featswap-probe-limit20", "features",
        "influence-limit20", "influence-k10-limit20", "influence-k20-limit20", "decompose-validate-k5-10-20-limit20",
        "decompose-essential-k10-limit20", "decompose-mutual-info-limit20", "decompose-finetune-k10-limit20",
        "decompose-sweep-k5-10-20-40-64-limit20", "relearn-start",
        *(f"{stage}-biasB{seed}-limit20" for stage in BIASED for seed in ("", "-seed2022", "-seed2023")),
        "relearn-compare-biasB-limit20", "modularize-grad-no-head-limit20",
        "compose-grad-no-head-simple-calibrate-min_max-outlier-limit20",
    }  # fmt: skip


@pytest.mark.slow
def test_the_demo_shows_each_command_as_it_can_be_typed(short):
    result, _again, output, _folders = short
    typed = re.findall(r"^\$ python src/(\w+)\.py (.+)$", result.out, re.M)
    heads = ["influence", *["decompose"] * 5, "modularize", "compose"]
    biased = ["eval", *["annotate", "relearn"] * 2]
    repairs = ["eval", "select", "correct", "correct", "switch"]
    assert [script for script, _line in typed] == [*repairs, *heads, *biased * 3, "relearn"]
    seeds = []
    for script, line in typed:
        module = importlib.import_module(f"deeppatch.cli.{main.COMMANDS[script]}.command")
        options = parsing.parse(module, line.split(), PREFIX)
        assert (options.output_dir, options.model) == (output, "resnet8")
        seeds.append(options.seed)
    assert seeds == [2021] * 13 + [2021] * 5 + [2022] * 5 + [2023] * 5 + [2021]


@pytest.mark.slow
def test_the_demo_ends_in_one_line_for_each_method_from_the_files_that_it_left(short):
    result, again, output, _folders = short
    folder = output / "digits" / "resnet8" / "demo"
    lines = json.loads((folder / "closing.json").read_text())["lines"]
    assert [line["method"] for line in lines] == METHODS
    for line in lines:
        assert f"\n{line['method']}: {line['text']}\n" in result.out
        assert f"\n{line['method']}: {line['text']}\n" in again.out, "a finished demo shows them again"
        assert f"- **{line['method']}**: {line['text']}\n" in (folder / "closing.md").read_text()
    (switched,) = folder.parent.glob("switch-patch-replace-featswap-probe-limit20*/metrics.json")
    accuracies = json.loads(switched.read_text())["accuracy_percent"]
    gain = lines[0]["differences"]["switched against pretrained, blurred"]
    assert gain["estimate"] == pytest.approx(accuracies["switched"]["blurred"] - accuracies["pretrained"]["blurred"])
    gains = [json.loads(path.read_text()) for path in folder.parent.glob("relearn-hybrid-*/metrics.json")]
    assert len(gains) == 3
    mean = sum(run["gained_points"] for run in gains) / 3
    assert lines[3]["differences"]["hybrid against warm start"]["estimate"] == pytest.approx(mean)
    inputs = json.loads((folder / "run.json").read_text())["inputs"]
    assert len(inputs) == 11
    assert {Path(name).name for name in inputs} == {"metrics.json"}


@pytest.mark.slow
def test_the_demo_resumed_does_nothing_twice(short):
    _result, again, _output, _folders = short
    assert (again.status, again.err) == (0, "")
    assert again.out.count("[info] finished already: ") == 24
    assert "epoch 1: loss" not in again.out
