from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from deeppatch.cli import main, parsing
from deeppatch.cli.demo import command
from deeppatch.errors import UserError

PREFIX = "python src/{script}.py"
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
    stages = [stage for stage, _arguments in command.STEPS]
    assert list(dict.fromkeys(stages)) == [
        "pretrain", "influence", "decompose", "modularize", "compose", "annotate", "relearn", "assess", "correct",
        "evaluate",
    ]  # fmt: skip
    for stage, arguments in command.STEPS:
        module = importlib.import_module(f"deeppatch.cli.{stage}.command")
        options = parsing.parse(module, [*command.MODEL, *arguments], PREFIX)
        assert (options.model, options.dataset) == ("resnet8", "digits")
        if stage in ("assess", "correct", "evaluate"):
            assert options.fs_method == "featswap" or options.crt_method == "finetune"


@pytest.fixture(scope="module")
def short(launch, runs_in, tmp_path_factory):
    """The demo with few images and one epoch a training: its result, and where it worked."""
    output = tmp_path_factory.mktemp("demo")
    once = {"-e": "1", "--crt_epoch": "1", "--weak_epoch": "1"}
    steps = [
        (stage, [once.get(before, word) for before, word in zip([None, *words], words, strict=False)])
        for stage, words in command.STEPS
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "STEPS", steps)
        patch.setattr(command, "MODEL", [*command.MODEL, "--limit", "20"])
        result = launch("demo", ["--output_dir", str(output), "--device", "cpu"])
        again = launch("demo", ["--output_dir", str(output), "--device", "cpu", "-r"])
    return result, again, output, runs_in(output / "digits" / "resnet8").names()


@pytest.mark.slow
def test_the_demo_ends_in_the_table_that_says_what_was_gained_and_what_it_cost(short):
    result, _again, _output, folders = short
    assert (result.status, result.err) == (0, "")
    last = result.out[result.out.rindex("\n$ python src/switch.py ") :]
    assert re.search(r"^ *network +clean +s=0\.5 +s=1 +s=1\.5 +s=2 +s=2\.5 +s=3 +blurred +append +mixed$", last, re.M)
    for network in NETWORKS:
        assert re.search(rf"^ *{network}( +\d+\.\d\d){{10}}$", last, re.M)
    for network in NETWORKS[1:]:
        assert re.search(rf"^ *{network}( +\+\d+\.\d -\d+\.\d){{10}}$", last, re.M)
    assert "router: probe, one decision a sample" in last
    assert re.search(r"\[info\] demo: \d+ s in all; next: python src/eval\.py -m resnet32 -d cifar10\n$", result.out)
    assert folders == {
        "pretrain-limit20", "assess-featswap-limit20", "correct-finetune-limit20",
        "correct-patch-replace-featswap-limit20", "switch-patch-replace-featswap-probe-limit20", "features",
        "influence-limit20", "influence-k10-limit20", "influence-k20-limit20", "decompose-validate-k5-10-20-limit20",
        "decompose-essential-k10-limit20", "decompose-mutual-info-limit20", "decompose-finetune-k10-limit20",
        "decompose-sweep-k5-10-20-40-64-limit20", "pretrain-biasB-limit20", "relearn-start",
        "annotate-random-budget5pc-views2-biasB-limit20", "relearn-random-budget5pc-views2-biasB-limit20",
        "annotate-hybrid-budget5pc-views2-biasB-limit20", "relearn-hybrid-budget5pc-views2-biasB-limit20",
        "relearn-compare-biasB-limit20", "modularize-grad-no-head-limit20",
        "compose-grad-no-head-simple-calibrate-min_max-outlier-limit20",
    }  # fmt: skip


@pytest.mark.slow
def test_the_demo_shows_each_command_as_it_can_be_typed(short):
    result, _again, output, _folders = short
    typed = re.findall(r"^\$ python src/(\w+)\.py (.+)$", result.out, re.M)
    heads = ["influence", *["decompose"] * 5, "modularize", "compose"]
    biased = ["eval", *["annotate", "relearn"] * 2, "relearn"]
    assert [script for script, _line in typed] == ["eval", *heads, *biased, "select", "correct", "correct", "switch"]
    for script, line in typed:
        module = importlib.import_module(f"deeppatch.cli.{main.COMMANDS[script]}.command")
        options = parsing.parse(module, line.split(), PREFIX)
        assert (options.output_dir, options.seed, options.model) == (output, 2021, "resnet8")


@pytest.mark.slow
def test_the_demo_resumed_does_nothing_twice(short):
    _result, again, _output, _folders = short
    assert (again.status, again.err) == (0, "")
    assert again.out.count("[info] finished already: ") == 14
    assert "epoch 1: loss" not in again.out
