"""Help and every usage error answer at once: in little processor time, before torch is imported."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from dataclasses import MISSING, FrozenInstanceError, fields
from pathlib import Path

import pytest

import deeppatch
from deeppatch.cli import main, parsing
from deeppatch.cli.options import SCRIPTS
from deeppatch.data import corruption_names, sources
from deeppatch.data import names as data_names
from deeppatch.data.corruptions import kinds
from deeppatch.patching import fitting, units
from deeppatch.patching import names as patching_names
from deeppatch.zoo import names as zoo_names
from deeppatch.zoo.architectures import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "torchvision", "numpy", "pandas", "sklearn", "scipy", "matplotlib", "tqdm", "safetensors"}
SECONDS = 0.7
STAGES = list(SCRIPTS)
# what a stage cannot do without
NEEDED = {"decompose": ["finetune"], "annotate": ["--bias", "B"], "relearn": ["--bias", "B"]}
MISTAKES = {
    "--nonsense": "unrecognized arguments: --nonsense",
    "--version=1": "argument --version: ignored explicit argument",
    "-m resnt32": "argument -m/--model: there is no network resnt32 in the zoo (did you mean resnet32",
    "-d cifar100x": "cifar100x: unknown data set (did you mean cifar100?); choose from digits, ",
    "-d digits-mix": "digits-mix: name the class to correct, digits-mix:0 to digits-mix:4",
    "-d folder:nowhere": "nowhere/train is missing; an image folder is laid out as nowhere/{train,test}/CLASS/IMAGE",
    "--weights nowhere.pt": "nowhere.pt: No such file or directory; check the path",
    "--limit 0 --seed -1": "--limit 0: give at least 1 image, or leave it out for all; --seed -1: ",
}
MODULES = {stage: importlib.import_module(f"deeppatch.cli.{stage}.command") for stage in SCRIPTS}
TYPED = [stage for stage, module in MODULES.items() if hasattr(module, "Options")]


def started(*command: str) -> tuple[int, str, str]:
    """Run Python; return status, stdout and stderr of a command that imported nothing heavy and used little time."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *command], cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert process.stdout
    assert process.stderr
    out, err = process.stdout.read(), process.stderr.read()
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    imported = {line.rpartition("|")[2].strip() for line in err.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported or "deeppatch.cli.main" in imported, "the list of imports is read"
    assert not imported & HEAVY
    assert usage.ru_utime + usage.ru_stime < SECONDS
    return process.returncode, out, "\n".join(line for line in err.splitlines() if not line.startswith("import time:"))


@pytest.mark.parametrize("stage", STAGES)
def test_help_answers_at_once(stage):
    script = SCRIPTS[stage]
    status, out, err = started(f"src/{script}.py", "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: python src/{script}.py ")
    assert "(default: cuda where there is one, else cpu)" in " ".join(out.split()), "not this machine's device"
    assert "%%" not in out, "an example can be pasted"


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_file_is_told_at_once(stage):
    given = "--output_dir nowhere --nonsense" if stage == "demo" else "--weights nowhere.pt"
    status, _out, err = started(f"src/{SCRIPTS[stage]}.py", *NEEDED.get(stage, []), *given.split())
    assert status == 2
    assert "nonsense" in err or "nowhere.pt: No such file" in err


@pytest.mark.parametrize("given", MISTAKES)
def test_a_mistake_is_told_at_once(given):
    status, out, err = started("src/eval.py", *given.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {MISTAKES[given]}")
    assert "\n" not in err


@pytest.mark.parametrize(
    ("arguments", "status"), [("--help", 0), ("--version", 0), ("evalute", 2), ("--print-completion fish", 2)]
)
def test_the_console_answers_at_once(arguments, status):
    code = "import sys; sys.path.append('src'); from deeppatch.cli.main import console; console()"
    assert started("-c", code, *arguments.split())[0] == status


def test_a_script_tells_its_version_at_once():
    script = SCRIPTS[STAGES[0]]
    assert started(f"src/{script}.py", "--version") == (0, f"deeppatch {deeppatch.__version__}\n", "")


def test_names_are_those_of_the_registries():
    assert tuple(ARCHITECTURES) == zoo_names.ARCHITECTURE_NAMES
    assert (*sources.SOURCES, *sources.LISTED) == data_names.DATASET_NAMES
    assert sources.MIXES.keys() == data_names.MIXES.keys()
    assert tuple(kinds.KINDS) == corruption_names.COMMON
    assert tuple(units.UNITS) == patching_names.UNITS
    assert tuple(fitting.ROUTERS) == patching_names.ROUTERS


@pytest.mark.parametrize("mix", data_names.MIXES)
def test_a_mix_takes_the_classes_that_it_has(mix):
    count = data_names.MIXES[mix]
    data_names.check_name(f"{mix}:{count - 1}")
    with pytest.raises(parsing.UserError, match=f"{mix}:0 to {mix}:{count - 1}$"):
        data_names.check_name(f"{mix}:{count}")


@pytest.mark.parametrize("stage", TYPED)
def test_options_are_a_frozen_dataclass_with_the_parser_s_defaults(stage):
    module = MODULES[stage]
    options = parsing.parse(module, NEEDED.get(stage, []), "python src/{script}.py")
    assert type(options) is module.Options
    with pytest.raises(FrozenInstanceError):
        options.seed = 1
    own = {field.name for field in fields(options)} - {"prefix", "command", "defaults", "degradation", "split_digest"}
    assert own == options.defaults.keys(), "a field for each option, and an option for each field"
    for field in fields(options):
        default = options.defaults.get(field.name)
        if field.name in own and field.default is not MISSING:
            assert field.default == (tuple(default) if isinstance(default, list) else default), field.name
    assert options.command == f"python src/{SCRIPTS[stage]}.py {' '.join(NEEDED.get(stage, []))}".strip()


@pytest.mark.parametrize("stage", parsing.EPOCHS)
def test_every_stage_that_trains_takes_epochs(stage):
    options = parsing.parse(MODULES[stage], [*NEEDED.get(stage, []), "--epochs", "7"], "python src/{script}.py")
    assert getattr(options, parsing.EPOCHS[stage]) == 7
    assert re.search(r"--epochs\b", parsing.parser_of(MODULES[stage], "{script}").format_help())


def test_every_stage_has_a_script():
    assert {stage: script for script, stage in main.COMMANDS.items()} == SCRIPTS
