from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from deeppatch.cli import parsing
from deeppatch.cli.main import COMMANDS
from deeppatch.cli.naming import artifact_id, model_folder
from deeppatch.cli.options import DEFAULT_RATIO, OPTION_NAMES
from deeppatch.errors import UserError

PREFIX = "python src/{script}.py"
STAGES = ["eval", "select", "correct", "switch", "export"]
# the published command line, option by option; ratio None means 0.25, or the estimated one with -f ratioestim
DEFAULTS = {
    "data_dir": Path("data"), "output_dir": Path("output"), "gpu": 0, "batch_size": 256, "model": "resnet32",
    "resume": False, "noise_type": "gaussion", "severity": None, "hold_out": None, "lr": 0.01, "momentum": 0.9,
    "weight_decay": 5e-4, "max_epoch": 50,
    "fs_method": "perfloss", "crt_method": "patch", "crt_type": "replace", "crt_epoch": 20, "susp_ratio": None,
    "susp_side": "front", "seed": 2021, "val_share": None, "limit": None,
    "image_size": None, "resize": "crop", "weights": None, "ranking": None,
    "patch": None, "finetuned": None, "amp": False, "sink": None,
}  # fmt: skip
OWN_DEFAULTS = {
    "eval": {
        "train": False,
        "recipe": "default",
        "bias": None,
        "splits": None,
        "mean": None,
        "std": None,
        "state": "pretrained",
        "modular": False,
        "modular_weights": None,
    },
    "select": {"mem": 2048, "refine": 0, "race": None},
    "correct": {
        "passes": None,
        "filter_seed": None,
        "init": "original",
        "train_on": "degraded",
        "statistics": "linear",
        "conditions": "level",
        "block": 1,
        "max_clean_drop": None,
        **{"popsize": 10, "robust_threshold": 1e-3, "crossover_prob": 0.4},
        **{"rdlm": 20, "rdlm_images": 10_000, "rdlm_epoch": 40, "fix_steps": 100, "eta": 0.001, "strategy": 2},
        **{"select": "best", "select_images": None, "select_only": False, "select_half": False},
        **{"augmix_weight": 12.0, "augmix_blur": False, "unlabelled": None},
    },
    "switch": {
        "router": "probe",
        "router_file": None,
        "switch": "sample",
        "max_clean_drop": 0.1,
        "max_flips": None,
        "calibrate_on": "val",
        "alarm": None,
        "experts": None,
        "neighbours": None,
    },
    "export": {"router": "probe", "switched": None},
}
SHORT = {
    "-m vgg13_bn": ("model", "vgg13_bn"),
    "-d cifar100": ("dataset", "cifar100"),
    "-n gaussion": ("noise_type", "gaussion"),
    "-b 7": ("batch_size", 7),
    "-e 7": ("max_epoch", 7),
    "-f featswap": ("fs_method", "featswap"),
    "-c patch": ("crt_method", "patch"),
    "-r": ("resume", True),
}
LONG = {
    "--data_dir d-1": ("data_dir", Path("d-1")),
    "--output_dir o_1": ("output_dir", Path("o_1")),
    "--device cpu": ("device", "cpu"),
    "--gpu 0": ("gpu", 0),
    "--batch_size 3": ("batch_size", 3),
    "--model resnet8": ("model", "resnet8"),
    "--resume": ("resume", True),
    "--dataset cifar10": ("dataset", "cifar10"),
    "--noise_type gaussion": ("noise_type", "gaussion"),
    "--lr 0.5": ("lr", 0.5),
    "--momentum 0.5": ("momentum", 0.5),
    "--weight_decay 0.5": ("weight_decay", 0.5),
    "--max_epoch 3": ("max_epoch", 3),
    "--fs_method ratioestim": ("fs_method", "ratioestim"),
    "--crt_method patch": ("crt_method", "patch"),
    "--crt_type crtunit": ("crt_type", "crtunit"),
    "--crt_epoch 3": ("crt_epoch", 3),
    "--susp_ratio 0.5": ("susp_ratio", 0.5),
    "--susp_side rear": ("susp_side", "rear"),
    "--val_share 0.2": ("val_share", 0.2),
    "--image_size 48": ("image_size", 48),
    "--resize squash": ("resize", "squash"),
}
CHOICES = {
    "--device": {"cpu", "cuda"},
    "--noise_type": {"gaussion", "gaussian-blur"},
    "--fs_method": {"featswap", "perfloss", "ratioestim"},
    "--crt_method": {"patch", "finetune", "interpolate", "norms", "bank", "surgical"},
    "--crt_type": {"crtunit", "replace"},
    "--susp_side": {"front", "rear", "random"},
    "--model": {"resnet32", "mobilenetv2_x0_5", "vgg13_bn", "shufflenetv2_x1_0"},
    "--dataset": {"cifar10", "cifar100"},
}
PUBLISHED = [
    "python src/eval.py -m resnet32 -d cifar10",
    "python src/select.py -m resnet32 -d cifar10 -f perfloss",
    "python src/correct.py -m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace",
    "python src/switch.py -m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace",
]
GROUPS = {
    "eval": "pretrain:",
    "switch": "evaluate:",
    "export": "export:",
    "select": "assess and correct:",
    "correct": "assess and correct:",
    "demo": "machine:",
}


def parse(script: str, *arguments: str) -> argparse.Namespace:
    module = importlib.import_module(f"deeppatch.cli.{COMMANDS[script]}.command")
    return parsing.parse(module, arguments, PREFIX)


@pytest.mark.parametrize("script", STAGES)
def test_every_option_has_its_published_default(script):
    options = vars(parse(script))
    expected = {**DEFAULTS, **OWN_DEFAULTS[script]}
    assert {name: options[name] for name in expected} == expected
    assert DEFAULT_RATIO == 0.25
    assert options["device"] == "auto"
    bookkeeping = {"dataset", "device", "prefix", "command", "defaults", "degradation", "split_digest"}
    assert options.keys() - bookkeeping == expected.keys(), "an option that this table does not know"


@pytest.mark.parametrize("script", STAGES)
@pytest.mark.parametrize("given", [*SHORT, *LONG])
def test_every_published_option_is_taken_by_every_stage(script, given):
    name, value = {**SHORT, **LONG}[given]
    options = parse(script, *given.split())
    assert getattr(options, name) == value
    others = {key: kept for key, kept in DEFAULTS.items() if key != name}
    assert {key: getattr(options, key) for key in others} == others


@pytest.mark.parametrize("given", [given for given in LONG if "_" in given.split()[0]])
def test_dashes_do_for_underscores(given):
    flag, _, value = given.partition(" ")
    dashed = flag.replace("_", "-").replace("--", "--", 1)
    name, expected = LONG[given]
    assert getattr(parse("select", dashed, value), name) == expected
    assert getattr(parse("select", f"{dashed}={value}"), name) == expected


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag in CHOICES for value in sorted(CHOICES[flag])])
def test_every_published_choice_is_taken(flag, value):
    chosen = parse("select", flag, value)
    name = flag.removeprefix("--")
    assert getattr(chosen, name) == {"gaussian-blur": "gaussion"}.get(value, value)


@pytest.mark.parametrize("flag", CHOICES)
def test_no_other_choice_is_taken(flag):
    with pytest.raises(UserError, match=r"nonsense") as refusal:
        parse("select", flag, "nonsense")
    assert "\n" not in str(refusal.value)
    for value in CHOICES[flag] - {"gaussian-blur"}:
        assert value in str(refusal.value), "the message lists what there is"


def test_gaussian_blur_is_the_same_noise_in_the_same_folder():
    ours, published = parse("select", "-n", "gaussian-blur"), parse("select", "-n", "gaussion")
    assert ours.noise_type == published.noise_type == "gaussion"
    for options in (ours, published):
        assert model_folder(options) / artifact_id("assess", options, {}) == Path(
            "output/digits/resnet32/assess-perfloss"
        )  # fmt: skip


@pytest.mark.parametrize("line", PUBLISHED)
def test_the_published_commands_parse_and_mean_what_they_say(line):
    _python, path, *arguments = line.split()
    options = parse(Path(path).stem, *arguments)
    assert (options.model, options.dataset, options.fs_method) == ("resnet32", "cifar10", "perfloss")
    assert (options.crt_method, options.crt_type, options.susp_ratio) == ("patch", "replace", None)
    assert options.command == line


def test_the_recorded_command_can_be_typed_again():
    typed = ["--output-dir", "my results", "-d", "folder:it's here"]
    assert shlex.split(parse("eval", *typed).command) == ["python", "src/eval.py", *typed]


@pytest.mark.parametrize("script", STAGES)
def test_help_ends_well_and_shows_groups_defaults_units_and_an_example(launch, script):
    result = launch(script, ["--help"])
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"usage: python src/{script}.py ")
    for group in ("data and model:", "machine:", "training:", "assess and correct:", GROUPS[script]):
        assert f"\n{group}\n" in result.out
    example = re.search(r"\nexample:\n  python src/(\w+)\.py (.+)\n$", result.out)
    assert example.group(1) == script
    assert parse(script, *example.group(2).split()) is not None
    told = explained(result.out)
    defaults = {**DEFAULTS, **OWN_DEFAULTS[script]}
    assert {OPTION_NAMES.get(name, name) for name in defaults} <= told.keys()
    for name, default in defaults.items():
        if name == "susp_ratio":
            assert told[name].endswith("(default: 0.25; with -f ratioestim the estimated one)")
            assert "share of each layer's filters to patch, above 0 to 1" in told[name]
        elif default not in (None, False):
            said = re.search(r"\(default: ([^ ,;)]+)", told[name])
            assert type(default)(said.group(1)) == default, name


def test_the_units_of_evaluate_s_own_options_are_told(launch):
    text = " ".join(launch("switch", ["--help"]).out.split())
    assert (
        "bound on the loss of clean accuracy, in points, shown on the calibration images with 95 % confidence; " in text
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--modle", "resnet8"], ["--susp", "0.5"], ["--limi", "3"], ["extra"], ["-b", "many"], ["-b"],
        ["--mean", "0", "0"], ["--router", "probe"],
    ],
)  # fmt: skip
def test_a_wrong_flag_is_one_line_that_points_to_the_help(launch, refusal, arguments):
    line = refusal(launch("eval", arguments))
    assert arguments[0] in line
    assert line.endswith("; see python src/eval.py --help")


def explained(text: str) -> dict[str, str]:
    """Return the explanation of each option in a help text, by its long name."""
    entries = re.split(r"\n  (?=-)", text[text.index("\noptions:") :])
    whole = [" ".join(entry.split("\n\n")[0].split()) for entry in entries]
    return {found.group(1): entry for entry in whole if (found := re.search(r"--(\w+)", entry))}
