"""The house rules that the sources themselves can show: layers, borders, sizes, and the file that shadows `select`."""

from __future__ import annotations

import ast
import graphlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deeppatch.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
PACKAGE = SRC / "deeppatch"

# DESIGN, section 2, from the top down; a layer imports from the layers below it only
LAYERS = (
    ("cli",),
    ("saving",),
    ("localization", "patching", "retrain", "decomposition", "modular", "hybrid", "report", "adapt"),
    ("pretraining", "ledger"),
    ("evaluation", "features", "attack", "neighbours"),
    ("training",),
    ("graph", "data", "zoo"),
    ("cache", "divergence"),
    ("artifacts", "distributed"),
    ("stage",),
    ("lock", "storage"),
    ("runtime", "metrics", "optimizers"),
    ("progress",),
    ("errors",),
)
METHODS = LAYERS[2]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def module_name(path: Path) -> str:
    """`deeppatch.data.views` for the file of that module; a script is named by its stem."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(SRC.rglob("*.py"))
TREES = {module_name(path): ast.parse(path.read_text()) for path in FILES}
PACKAGES = {module_name(path) for path in FILES if path.name == "__init__.py"}
MODULES = {name: tree for name, tree in TREES.items() if name.split(".")[0] == "deeppatch"}
SCRIPTS = {name: tree for name, tree in TREES.items() if name not in MODULES}


def imports(name: str, tree: ast.Module) -> set[str]:
    """Every module of this repository that `name` imports anywhere in its file, submodules in full."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                base = name.split(".") if name in PACKAGES else name.split(".")[:-1]
                base = base[: len(base) - node.level + 1]
                origin = ".".join([*base, *([origin] if origin else [])])
            submodules = {f"{origin}.{alias.name}" for alias in node.names} & TREES.keys()
            found |= submodules
            # `from deeppatch import runtime` reads runtime, and of the package only its docstring
            if not submodules or len(submodules) < len(node.names):
                found.add(origin)
    return {each for each in found if each.split(".")[0] in {"deeppatch", *SCRIPTS} and each != name}


def part_of(module: str) -> str:
    """`data` for deeppatch.data.views, the empty string for deeppatch itself."""
    return [*module.split("."), ""][1]


# the package itself names where things are and imports on demand, for type checkers apart
EDGES = {name: imports(name, tree) if name != "deeppatch" else set() for name, tree in MODULES.items()}


def test_the_layers_name_every_part_of_the_package():
    assert {part_of(name) for name in MODULES} - {""} <= LEVEL.keys()
    loaded = {each for node in MODULES["deeppatch"].body for each in imports("deeppatch", ast.Module([node], []))
              if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")}  # fmt: skip
    assert loaded == set(), "the package itself imports on demand, so that importing it costs nothing"


def test_the_parser_of_these_tests_sees_imports():
    assert "deeppatch.artifacts" in EDGES["deeppatch.training"]
    assert "deeppatch.runtime" in EDGES["deeppatch.training"], "from deeppatch import runtime"
    assert "deeppatch.cli.parsing" in EDGES["deeppatch.cli.main"], "an import within a function"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down_never_sideways(name):
    own = part_of(name)
    wrong = [each for each in EDGES[name] if part_of(each) not in ("", own) and LEVEL[part_of(each)] <= LEVEL[own]]
    assert not wrong, f"{name} ({own}) imports {wrong}"


def test_methods_never_import_each_other():
    methods = set(METHODS)
    crossing = [
        (name, each)
        for name, targets in EDGES.items()
        for each in targets
        if {part_of(name), part_of(each)} <= methods and part_of(name) != part_of(each)
    ]
    assert crossing == []


def test_there_is_no_import_cycle():
    order = list(graphlib.TopologicalSorter(EDGES).static_order())
    assert set(order) >= MODULES.keys()


def test_scripts_import_the_commands_alone_and_nothing_imports_a_script():
    for name, tree in SCRIPTS.items():
        assert imports(name, tree) == {"deeppatch.cli.main"}, name
    assert not [name for name, targets in EDGES.items() if targets & SCRIPTS.keys()]


def test_every_script_has_a_command_module_and_calls_it_by_name():
    for name, tree in SCRIPTS.items():
        assert (PACKAGE / "cli" / COMMANDS[name] / "command.py").is_file()
        calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert f"main('{name}')" in calls


def identifiers(tree: ast.Module) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
    return names


def test_commands_alone_know_parsed_options():
    knowing = {name for name, tree in MODULES.items() if identifiers(tree) & {"argparse", "Namespace"}}
    assert "deeppatch.cli.parsing" in knowing
    assert {part_of(name) for name in knowing} == {"cli"}


def test_only_runtime_asks_about_cuda():
    def asks(tree: ast.Module) -> bool:
        dotted = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        return any(name.startswith(("torch.cuda", "torch.backends")) for name in dotted | identifiers(tree))

    assert {name for name, tree in TREES.items() if asks(tree)} == {"deeppatch.runtime"}
    assert not [path for path in FILES if path.name != "runtime.py" and "torch.cuda" in path.read_text()]


def test_only_the_training_loop_computes_gradients():
    def learns(tree: ast.Module) -> bool:
        calls = {node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "attr")}
        return bool(calls & {"backward", "zero_grad"})

    assert {name for name, tree in TREES.items() if learns(tree)} == {"deeppatch.training"}


def test_only_the_training_loop_steps_an_optimizer():
    def steps(tree: ast.Module) -> bool:
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        return any(name.endswith("optimizer.step") for name in calls)

    assert {name for name, tree in TREES.items() if steps(tree)} == {"deeppatch.training"}


def test_no_file_is_longer_than_300_lines():
    assert {path.name: lines for path in FILES if (lines := len(path.read_text().splitlines())) > 300} == {}


def unformatted(text):
    """Return the lines of `# fmt: skip` that do not end a table of data: an assigned dict, list, set or tuple."""
    skips = [number for number, line in enumerate(text.splitlines(), 1) if line.endswith("# fmt: skip")]
    tables = {
        node.end_lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        and isinstance(node.value, ast.Dict | ast.List | ast.Set | ast.Tuple)
    }
    return [number for number in skips if number not in tables]


def test_the_formatter_is_left_out_of_tables_of_data_alone():
    assert unformatted("A = (1,  2)  # fmt: skip\nprint(1,  2)  # fmt: skip") == [2]
    assert {path.name: lines for path in FILES if (lines := unformatted(path.read_text()))} == {}


def test_no_module_is_called_after_a_drawer():
    assert not {part for name in MODULES for part in name.split(".")} & {"utils", "helpers", "common", "misc", "base"}


def test_only_select_shares_a_name_with_the_standard_library():
    assert {path.stem for path in SRC.glob("*.py")} & sys.stdlib_module_names == {"select"}


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(("folder", "first"), [(".", "src"), ("src", ""), ("src", "."), ("src", "../src")])
def test_select_steps_aside_for_the_standard_library(folder, first):
    code = (
        f"import sys; sys.path.insert(0, {first!r}); import select, subprocess, selectors, socket; "
        "assert hasattr(select, 'select') or hasattr(select, 'poll'); print(getattr(select, '__file__', 'built in')); "
        "import correct; print(correct.__file__)"
    )
    done = python("-c", code, cwd=ROOT / folder)
    assert done.returncode == 0, done.stderr
    standard, script = done.stdout.splitlines()
    assert Path(standard).resolve() != SRC / "select.py"
    assert Path(script).resolve() == SRC / "correct.py", "src/ stays on the path, behind the standard library"


STAGE = '''
"""Stands in for deeppatch.cli.main: a stage that starts worker processes as a DataLoader does."""
import multiprocessing
import select
import sys


def work(number):
    import select, selectors, socket, subprocess
    return number * 2 if hasattr(select, "select") else None


def main(script):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(script, hasattr(select, "select"), pool.map(work, [1, 2]))
'''


@pytest.fixture
def scripts(tmp_path):
    """A folder with src/ and its real scripts over a package whose stages start spawned workers."""
    folder = tmp_path / "src"
    (folder / "deeppatch" / "cli").mkdir(parents=True)
    for script in SRC.glob("*.py"):
        shutil.copy(script, folder)
    for package in ("deeppatch", "deeppatch/cli"):
        (folder / package / "__init__.py").touch()
    (folder / "deeppatch" / "cli" / "main.py").write_text(STAGE)
    return folder


@pytest.mark.parametrize("script", ["select", "correct"])
@pytest.mark.parametrize("place", ["root", "src"])
def test_a_stage_starts_spawned_workers(scripts, script, place):
    command, cwd = (f"src/{script}.py", scripts.parent) if place == "root" else (f"{script}.py", scripts)
    done = python(command, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == f"{script} True [2, 4]"


def test_a_data_loader_with_spawned_workers_runs_beside_select(scripts):
    (scripts / "deeppatch" / "cli" / "main.py").write_text(
        "import torch\n"
        "from torch.utils.data import DataLoader\n"
        "def main(script):\n"
        "    loader = DataLoader(list(range(4)), 2, num_workers=1, multiprocessing_context='spawn')\n"
        "    print([batch.tolist() for batch in loader])\n"
    )
    done = python("src/select.py", cwd=scripts.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[0, 1], [2, 3]]"
