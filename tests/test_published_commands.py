"""The page of published commands: the middle column parses, and the authors' words mean what the page says."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from deeppatch.cli import locating, naming, parsing
from deeppatch.cli.main import COMMANDS
from deeppatch.errors import UserError
from deeppatch.patching.names import PUBLISHED_PATCHES, UNITS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "published-commands.md").read_text()
TABLE = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
ROWS = [row for row in TABLE if row[0] != "published"]
HERE = sorted({command for row in ROWS for command in re.findall(r"`(python src/[^`]+)`", " ".join(row[1:]))})
PREFIX = "python src/{script}.py"


def parse(stage: str, line: str):
    """Parse as the stage does it, without a run."""
    return parsing.parse(importlib.import_module(f"deeppatch.cli.{stage}.command"), shlex.split(line), PREFIX)


@pytest.mark.parametrize("command", HERE)
def test_the_middle_column_is_understood(command):
    script, _, arguments = command.removeprefix("python src/").partition(".py ")
    assert parse(COMMANDS[script], arguments).dataset != "digits", "published commands name their data"


def test_what_a_command_reads_another_one_of_its_table_leaves():
    """A reader who follows a table from top to bottom misses no stage, and no option in which two stages must agree."""
    parts = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:-1]
    for part in parts:
        table = "\n".join(line for line in part.splitlines() if line.startswith("| "))
        commands = re.findall(r"`python src/(\w+)\.py ([^`]+)`", table)
        parsed = [(COMMANDS[script], parse(COMMANDS[script], line)) for script, line in commands]
        left = {run(stage, options) for stage, options in parsed if stage != "decompose"}  # nothing reads its runs
        for stage, options in parsed:
            corrected = stage == "pretrain" and options.state == "corrected"
            for name, role in locating.roles("eval" if corrected else stage, options).items():
                if name != "finetuned" and not getattr(options, role.option or "none", None):
                    read = run(role.stage, SimpleNamespace(**{**vars(options), **role.changes}))
                    assert read in left, options.command


def run(stage: str, options) -> Path:
    return naming.model_folder(options) / naming.readable_name(stage, options)


def test_every_row_has_a_command_here_or_says_that_there_is_none_and_what_differs():
    assert len(ROWS) > 50
    for row in ROWS:
        assert len(row) == 3, row
        assert row[1].strip() == "not here" or re.fullmatch(r"`(python src/|pipenv run )[^`]+`", row[1].strip()), row
        assert row[2].strip()


def test_all_seeds_have_a_table():
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert headings[:-1] == ["DeepPatch", "Decomposing the Deep", "CNNSplitter", "GradSplitter", "HybridRepair"]


@pytest.mark.parametrize(
    ("stage", "published", "here"),
    [
        ("correct", "-p DP", "--crt_type replace"),
        ("correct", "--pt-method DC", "--crt_type crtunit"),
        ("evaluate", "-p DP-s -d cifar10", "-n spatial -d cifar10"),
        ("correct", "-p DP-SS --popsize 5", "-n spatial --train_on sensei --popsize 5"),
        ("assess", "-p SS-DP --base w.th", "-n spatial --weights w.th"),
        ("annotate", "-m MobileNet --bias 0 --method TTA", "-m mobilenet --bias A --method hybrid"),
        ("annotate", "-m ShuffleNetG2 --bias 1 --method SSLRandom", "-m shufflenet_g2 --bias B --method ssl-random"),
        ("relearn", "-m MOBILENET --bias 2 --method sslconsistency", "-m mobilenet --bias C --method ssl-consistency"),
        ("relearn", "--bias c --method SSLConsistency-Imp", "--bias C --method ssl-consistency-imp"),
        ("relearn", "--bias A --method MCP", "--bias A --method mcp"),
        ("decompose", "validate resnet20 --lr 0.1", "validate -m resnet20a -d cifar10"),
        ("decompose", "essential resnet50 -g 3", "essential -m resnet50 -d imagenet"),
        ("decompose", "finetune resnet20 -d cifar100 --num-epochs 7", "finetune -m resnet20a -d cifar100 -e 7"),
        ("decompose", "-d cifar100 finetune resnet20", "finetune -m resnet20a -d cifar100"),
    ],
)  # fmt: skip
def test_published_words_are_recorded_as_those_here(stage, published, here):
    """Two spellings of a command leave the same folder."""
    names = [naming.model_folder(each) / naming.artifact_id(stage, each, {}) for each in
             (parse(stage, published), parse(stage, here))]  # fmt: skip
    assert names[0] == names[1]
    incidental = {"gpu", "lr"}  # of decompose validate, which does not read it
    settings = [naming.own_settings(stage, parse(stage, line)) for line in (published, here)]
    kept = [{key: value for key, value in each.items() if key not in incidental} for each in settings]
    assert kept[0] == kept[1]


def test_files_of_decompose_by_their_published_names(tmp_path):
    file = tmp_path / "indices.json"
    file.write_text("{}")
    options = parse("decompose", f"validate resnet20 --inds-file {file} --weights-file {file} -g 2")
    assert (options.indices, options.weights, options.gpu) == ([file], file, 2)
    assert parse("decompose", f"validate -w {file} --inds-file {file}").weights == file


def test_a_rate_in_validate_is_idle_and_elsewhere_refused():
    idle = parse("decompose", "validate resnet20 --lr 0.1")
    assert naming.unused_options("decompose", idle) == ["lr"]
    assert naming.unused_options("decompose", parse("decompose", "finetune resnet20 --lr 0.1")) == []
    with pytest.raises(UserError, match="--lr can only be used with finetune and sweep, not with essential"):
        parse("decompose", "essential resnet20 --lr 0.1")


def test_a_word_that_nobody_published_is_one_line():
    for stage, line, told in (
        ("correct", "-p SS-PD", "choose from DP, DC, DP-s, DP-SS, SS-DP"),
        ("annotate", "--bias 3", "choose from A, B, C"),
        ("annotate", "--bias B --method SSLRandm", "did you mean"),
        ("decompose", "validate resnt20", "there is no network resnt20"),
    ):
        with pytest.raises(UserError, match=told):
            parse(stage, line)


@pytest.mark.parametrize(
    ("stage", "line", "told"),
    [
        ("correct", "-p DP-s -n gaussion", "-p DP-s is --noise_type spatial: leave --noise_type gaussion out"),
        ("correct", "-p DC --crt_type replace", "-p DC is --crt_type crtunit: leave --crt_type replace out"),
        ("correct", "-p DP-SS --train_on clean", "-p DP-SS is --train_on sensei: leave --train_on clean out"),
        ("correct", "-p DP -c finetune", "-p DP is a patch: leave -c finetune out"),
        ("evaluate", "-p SS-DP", "-p SS-DP patches a network of -c sensei: name the folder that it left with --base_"),
        ("annotate", "--u_weight 3", "unrecognized arguments: --u_weight 3 (--pool_weights and --pseudo_weight here)"),
        ("annotate", "--auto_tao", "unrecognized arguments: --auto_tao (--tau auto here)"),
        ("compose", "-d digits:0-4 digits:5-9", "arguments: digits:5-9 (join the classes of several data sets with +)"),
        ("pretrain", "-d digits:0-4,digits:5-9", "join data sets with + and without blanks, as digits:0-4+svhn:7,9"),
        ("pretrain", "-d 'digits:0-4 + digits:5-9'", "join data sets with + and without blanks"),
    ],
)  # fmt: skip
def test_what_contradicts_a_published_word_is_one_line(stage, line, told):
    with pytest.raises(UserError, match=re.escape(told)):
        parse(stage, line)


def test_further_words_of_the_authors():
    assert parse("evaluate", "-n spatial --num_neighbors 50").neighbours == 50
    assert parse("pretrain", "-m resnet18f -d tinyimagenet").model == "resnet18"
    for preset, place in (("simcnn-cifar10", "unpooled"), ("rescnn-cifar10", "pooled"), ("auto", "unpooled")):
        options = parse("modularize", f"-m simcnn -d cifar10 --method ga --preset {preset}")
        assert options.importance == options.defaults["importance"] == place


def test_published_patches_set_kinds_that_there_are():
    assert {each["crt_type"] for each in PUBLISHED_PATCHES.values()} == set(UNITS)
