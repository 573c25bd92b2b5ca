from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from deeppatch.cli import naming, parsing
from deeppatch.cli import options as command_line
from deeppatch.cli.arguments import add_shared
from deeppatch.errors import Contradictions, UserError

PREFIX = "python src/{script}.py"


def parse(arguments: list[str], stage: str = "evaluate") -> argparse.Namespace:
    parser = parsing.parser_for(stage, PREFIX, "What it does.", "-m resnet32")
    add_shared(parser)
    return parser.parse_args(parsing.normalise(arguments), argparse.Namespace(prefix=PREFIX))


def checked(arguments: list[str], stage: str = "evaluate") -> argparse.Namespace:
    options = parse(arguments, stage)
    parsing.check(options)
    return options


def test_the_defaults_are_those_of_the_published_tool():
    options = checked([])
    published = {
        "model": "resnet32", "noise_type": "gaussion", "batch_size": 256, "lr": 0.01, "momentum": 0.9,
        "weight_decay": 5e-4, "max_epoch": 50, "crt_epoch": 20, "crt_method": "patch", "crt_type": "replace",
        "susp_side": "front", "data_dir": Path("data"), "output_dir": Path("output"), "seed": 2021, "resume": False,
    }  # fmt: skip
    assert {name: getattr(options, name) for name in published} == published
    assert command_line.DEFAULT_RATIO == 0.25
    assert options.susp_ratio is None, "the default ratio is the estimated one with -f ratioestim"


def test_the_published_command_lines_parse():
    for line in (
        "-m resnet32 -d cifar10 -f perfloss -c patch --crt_type replace --gpu 0 --device cpu -b 128 -r",
        "-m vgg13_bn -n gaussion -e 3 --lr 0.1 --momentum 0.8 --weight_decay 0 --crt_epoch 2 --susp_ratio 0.5",
        "-f featswap -c finetune --crt_type crtunit --susp_side rear --data_dir a --output_dir b",
    ):
        checked(line.split())


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--susp-ratio", "0.5"], ["--susp_ratio", "0.5"]),
        (["--data-dir=my-data", "-m", "a-b"], ["--data_dir=my-data", "-m", "a-b"]),
        (["--output_dir", "out-put"], ["--output_dir", "out-put"]),
        (["--weights=--odd-name=x"], ["--weights=--odd-name=x"]),
        (["-d", "folder:my-photos", "--limit", "-5"], ["-d", "folder:my-photos", "--limit", "-5"]),
    ],
)
def test_dashes_in_names_become_underscores_and_values_stay(given, meant):
    before = list(given)
    assert parsing.normalise(given) == meant
    assert given == before


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--susp_r 0.5", "--susp_r 0.5 (did you mean --susp_ratio?)"),
        ("--modle=resnet8", "--modle=resnet8 (did you mean --model?)"),
        ("-m resnet33", "there is no network resnet33 in the zoo (did you mean resnet32"),
        ("-f perflos", "invalid choice: perflos (did you mean perfloss?); choose from activation, featswap"),
        ("-n frog", "no corruption called frog (did you mean fog?)"),
        ("--lr=--", "argument --lr: expected one argument, not --"),
        ("-n fog --severity 7", "severity 7: give numbers from 1 to 5"),
        ("-n fog,my:", "no corruption called my:"),
        ("--degraded a,b", "a,b: a comma separates names of degradations"),
        ("--limit many", "many"),
        ("-d", "-d"),
    ],
)
def test_a_mistake_is_one_line_that_names_it_and_the_help(line, named):
    with pytest.raises(UserError) as error:
        parse(line.split())
    assert named in str(error.value)
    assert str(error.value).endswith("see python src/switch.py --help")
    assert "\n" not in str(error.value)


def test_gaussian_blur_is_another_name_of_gaussion():
    assert checked(["-n", "gaussian-blur"]).noise_type == "gaussion"
    assert checked(["-n", "gaussion"]).noise_type == "gaussion"


WRONG = {
    "--batch_size": ["0", "-1"],
    "--max_epoch": ["0"],
    "--crt_epoch": ["-3"],
    "--lr": ["0", "-0.1", "nan"],
    "--limit": ["0", "-5"],
    "--val_share": ["0", "1", "-0.2", "nan"],
    "--susp_ratio": ["0", "1.01", "-0.2", "nan"],
    "--momentum": ["1", "-0.1", "nan"],
    "--weight_decay": ["-1e-4"],
    "--seed": ["-1", "2147483648"],
    "--gpu": ["1"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(Contradictions) as error:
        checked(["--device", "cpu", f"{name}={value}"])
    assert str(error.value).startswith(name)
    assert ";" not in str(error.value)


def test_values_at_the_edge_of_the_range_pass():
    for line in (
        "--susp_ratio 1 --momentum 0 --weight_decay 0 --seed 0 --limit 1 -b 1 -e 1 --crt_epoch 1",
        "--seed 2147483647 --susp_ratio 1e-9 --device cuda --gpu 3",
        "--gpu 3",
    ):
        checked(line.split())


def test_all_contradictions_are_reported_at_once():
    arguments = ["--device", "cpu", *(f"{name}={values[0]}" for name, values in WRONG.items())]
    with pytest.raises(Contradictions) as error:
        checked(arguments)
    problems = str(error.value).split("; ")
    assert len(problems) == len(WRONG)
    assert {problem.split()[0] for problem in problems} == WRONG.keys()
    assert "\n" not in str(error.value)


def test_a_stage_s_own_contradictions_join_the_shared_ones():
    options = parse(["--lr", "0"])
    with pytest.raises(Contradictions, match=r"^--lr 0.0: .*; --router: not with replace$"):
        parsing.check(options, lambda given: [f"--router: not with {given.crt_type}"])


def test_a_stage_is_called_by_its_script_or_by_its_name():
    assert command_line.call(PREFIX, "assess") == "python src/select.py"
    assert command_line.call("deeppatch {stage}", "assess") == "deeppatch assess"


def test_the_help_shows_the_example_as_it_is_typed():
    text = parsing.parser_for("assess", PREFIX, "Rank.", "-m resnet32 -d cifar10").format_help()
    assert "example:\n  python src/select.py -m resnet32 -d cifar10\n" in text


LINES = [
    "",
    "-m vgg13_bn -d cifar10 -f featswap",
    "-c finetune --seed 7 --val_share 0.2 --limit 100",
    "--crt_type crtunit --susp_ratio 0.5 --susp_side rear -f ratioestim",
    "--susp-ratio 0.25 --data-dir my-data --output_dir elsewhere --weights w.pt",
    "-d folder:photos --susp_side random",
]
TOLD = {
    "pretrain": ("model", "dataset", "seed", "val_share", "limit", "data_dir", "output_dir"),
    "assess": ("model", "dataset", "seed", "val_share", "limit", "data_dir", "output_dir", "fs_method", "weights"),
}
TOLD["correct"] = (*TOLD["assess"], "crt_method")
TOLD["evaluate"] = TOLD["correct"]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("stage", ["pretrain", "assess", "correct", "evaluate"])
def test_a_spelled_command_parses_back_to_the_same_options_and_folders(stage, line):
    options = checked(line.split())
    script, *arguments = command_line.command_for(stage, options).removeprefix("python ").split()
    assert script == f"src/{command_line.SCRIPTS[stage]}.py"
    back = checked(arguments, stage)
    assert {name: getattr(back, name) for name in TOLD[stage]} == {n: getattr(options, n) for n in TOLD[stage]}
    assert naming.suffix(back) == naming.suffix(options)
    if stage in ("correct", "evaluate"):
        assert naming.correction(back) == naming.correction(options)


def test_spell_is_short_for_the_defaults_and_takes_changes():
    options = checked([])
    assert command_line.command_for("pretrain", options) == "python src/eval.py -m resnet32 -d digits"
    assert command_line.command_for("assess", options, fs_method="featswap", seed=3) == (
        "python src/select.py -m resnet32 -d digits -f featswap --seed 3"
    )
    assert options.seed == 2021


def test_pretrain_is_spelled_without_the_weights_that_later_stages_take_instead():
    assert "--weights" not in command_line.command_for("pretrain", checked(["--weights", "w.pt"]))


@pytest.mark.parametrize(
    ("line", "end"),
    [
        ("", ""),
        ("--seed 2021", ""),
        ("--seed 7", "-seed7"),
        ("--limit 100", "-limit100"),
        ("--val_share 0.2", "-val0.2"),
        ("--seed 7 --val_share 0.25 --limit 100", "-seed7-val0.25-limit100"),
    ],
)
def test_a_folder_s_name_tells_what_is_not_the_default(line, end):
    assert naming.suffix(checked(line.split())) == end


def test_a_folder_s_name_tells_the_noise_that_is_not_the_default():
    options = checked(["--seed", "7"])
    options.noise_type = "fog"
    assert naming.suffix(options) == "-fog-seed7"
    options = checked(["-n", "snow, fog", "--severity", "5,3"])
    assert (options.noise_type, options.severity) == ("snow,fog", "3,5")
    assert naming.suffix(options) == "-snow+fog-sev35"
    assert naming.suffix(checked(["-n", "fog,snow", "--severity", "1..5"])) == "-snow+fog"
    assert naming.suffix(checked(["-n", "weather"])) == "-weather"
    assert "--noise_type weather --severity 2" in command_line.command_for(
        "assess", checked(["-n", "weather", "--severity", "2"])
    )


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("", "patch-replace-perfloss"),
        ("--susp_ratio 0.25", "patch-replace-perfloss"),
        ("--susp_ratio 0.5", "patch-replace-perfloss-ratio0.5"),
        ("--susp_side rear", "patch-replace-perfloss-rear"),
        ("-f featswap --crt_type crtunit --susp_ratio 1 --susp_side random", "patch-crtunit-featswap-ratio1-random"),
        ("-c finetune --susp_ratio 0.5 --susp_side rear", "finetune"),
    ],
)
def test_a_correction_s_name_tells_one_from_another(line, name):
    assert naming.correction(checked(line.split())) == name


def test_no_two_corrections_share_a_name():
    lines = [
        f"-f {method} --crt_type {kind} --susp_ratio {ratio} --susp_side {side}"
        for method in ("perfloss", "featswap") for kind in ("replace", "crtunit")
        for ratio in (0.2, 0.25, 0.3) for side in ("front", "rear", "random")
    ]  # fmt: skip
    assert len({naming.correction(checked(line.split())) for line in lines}) == len(lines)
