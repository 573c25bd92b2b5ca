"""Compare every correction at an equal budget of training: peers, baselines, patches, always on and switched.

python benchmarks/ledger.py [--weights FILE] [-m resnet32a] [-d cifar10] [--passes 30000] [--limit 2000] [--jobs N]
    [--compare WORDS]

The stages run one after the other, corrections in `--jobs` processes side by side: pretrain (reads the weights), assess
by taylor, every correction that is trained on blur with the same number of training passes, evaluate for each router,
and compare twice: on the levels of blur with all test images, and on the fifteen common corruptions with `--limit`.
What is finished is not run again. Leaves two CSV files, FILE-blur.csv and FILE-grid.csv, with a row for each network.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import machine
import pandas as pd

from deeppatch.cli.options import SCRIPTS
from deeppatch.data.names import slug
from deeppatch.zoo.names import model_slug

RANDOM_SEEDS = (1, 2, 3, 4, 5)
PATCH = ["-c", "patch", "--crt_type", "replace"]
TRAINED: dict[str, list[str]] = {
    "finetune": ["-c", "finetune"],
    "patch": [*PATCH, "-f", "taylor"],
    "patch, ratio 1": [*PATCH, "-f", "taylor", "--susp_ratio", "1"],
    "patch, units": ["-c", "patch", "--crt_type", "crtunit", "-f", "taylor"],
    **{f"random filters {seed}": [*PATCH, "-f", "random", "--filter_seed", str(seed)] for seed in RANDOM_SEEDS},
    "norms": ["-c", "norms"],
    "surgical": ["-c", "surgical"],
    "sensei": ["-c", "sensei"],
    "robot": ["-c", "robot"],
    "gini": ["-c", "gini"],
    "augmix": ["-c", "augmix"],
    "apricot": ["-c", "apricot", "--rdlm", "5", "--rdlm_images", "2000", "--rdlm_epoch", "5"],
}
UNTRAINED: dict[str, list[str]] = {
    "norms, nothing trained": ["-c", "norms", "--epochs", "0"],
    "bank": ["-c", "bank"],
}
VIEWS = ("clean", "blurred", "noise", "blur", "weather", "digital", "all", "mixed")
ROUTERS = ("probe", "benefit-both", "average")


def main() -> None:
    """Run the stages, and write what both comparisons found."""
    options = parser().parse_args()
    shared = ["-m", options.model, "-d", options.dataset, "--data_dir", str(options.data_dir)]
    shared += ["--output_dir", str(options.output_dir), "--device", options.device, "-r"]
    stage("pretrain", [*shared, *(["--weights", options.weights] if options.weights else [])])
    shared += ["--base", str(only(options, "pretrain*") / "weights.safetensors")]
    stage("assess", [*shared, "-f", "taylor"])
    budget = ["--passes", str(options.passes)]
    failed = at_once(options, [("correct", [*shared, *given, *budget]) for given in wanted(options, TRAINED)])
    finetuned = ["--finetuned", str(only(options, "correct-finetune*") / "weights.safetensors")]
    untrained = {**UNTRAINED, "interpolate": ["-c", "interpolate", *finetuned]}
    failed += at_once(options, [("correct", [*shared, *given]) for given in wanted(options, untrained)])
    patch = ["--patch", str(only(options, "correct-patch-replace-taylor-??????") / "patch.safetensors")]
    routed = [["-f", "taylor", *PATCH, *patch, *finetuned, "--router", router] for router in ROUTERS]
    routed += [["-c", "finetune", *finetuned, "--router", router] for router in ("probe",)]
    few = ["--limit", str(options.limit)]
    measured = few if "blur" not in options.tables else []
    failed += at_once(options, [("evaluate", [*shared, *given, *measured]) for given in routed])
    for name in options.tables:
        views = ["-n", "all", *few] if name == "grid" else []
        stage("compare", [*shared, *views, *shlex.split(options.compare)])
        write(options, name)
    if failed:
        raise SystemExit("left out, because they failed: " + "; ".join(failed))


def wanted(options: argparse.Namespace, corrections: dict[str, list[str]]) -> list[list[str]]:
    """Return the arguments of the corrections that --without does not name, as a whole or by their first words."""
    return [given for name, given in corrections.items() if not name.startswith(tuple(options.without))]


def stage(name: str, arguments: list[str]) -> None:
    """Run a stage in a process of its own, and end where it fails."""
    script = Path(machine.__file__).resolve().parents[1] / "src" / f"{SCRIPTS[name]}.py"
    subprocess.run([sys.executable, str(script), *arguments], check=True)  # noqa: S603


def at_once(options: argparse.Namespace, stages: list[tuple[str, list[str]]]) -> list[str]:
    """Run stages side by side, and return the commands of those that failed."""

    def attempted(given: tuple[str, list[str]]) -> str | None:
        try:
            stage(*given)
        except subprocess.CalledProcessError:
            return shlex.join([given[0], *given[1]])
        return None

    with ThreadPoolExecutor(options.jobs) as pool:
        return [command for command in pool.map(attempted, stages) if command]


def only(options: argparse.Namespace, pattern: str) -> Path:
    """Return the one finished run whose folder has such a name."""
    found = [path.parent for path in runs(options).glob(f"{pattern}/run.json")]
    if len(found) != 1:
        raise SystemExit(f"{runs(options)} has {len(found)} runs {pattern}; give an --output_dir of its own")
    return found[0]


def runs(options: argparse.Namespace) -> Path:
    """Return the folder of the runs of this model on this data set."""
    return options.output_dir / slug(options.dataset) / model_slug(options.model)


def write(options: argparse.Namespace, name: str) -> None:
    """Write what compare found on `blur` or on the `grid`: a row for each network."""
    folder = only(options, "compare-all*" if name == "grid" else "compare-??????")
    ledger = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    tidy = pd.read_csv(folder / "ledger.csv")
    frame = pd.DataFrame([row(network, facts, tidy) for network, facts in ledger["networks"].items()])
    test = int(tidy[tidy["view"] == "clean"]["n"].max())
    images = f"{test} test images of {options.dataset}, clean and at every level"
    device = machine.prepared(options.device)
    machine.write(frame, machine.beside(options, name), device, images=images, revision=record["git"])


def row(network: str, facts: dict[str, Any], tidy: pd.DataFrame) -> dict[str, Any]:
    """Return what a table says of a network: accuracies, changes with intervals, and what it cost."""
    own = tidy[(tidy.network == network) & (tidy.severity == 0)].set_index(["measure", "view"])
    found: dict[str, Any] = {"network": network, "passes": facts["passes"], "bytes": facts["bytes"]}
    for view in VIEWS:
        if ("accuracy", view) in own.index:
            found[view] = round(own.loc[("accuracy", view), "estimate"], 2)
        if ("change", view) in own.index:
            low, high = own.loc[("change", view), ["low", "high"]]
            found[f"{view}, change"] = f"{own.loc[('change', view), 'estimate']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return found


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("--weights", metavar="FILE", help="weights of the network (default: the published ones)")
    found.add_argument("-m", "--model", default="resnet32a", metavar="NAME")
    found.add_argument("-d", "--dataset", default="cifar10", metavar="NAME")
    found.add_argument("--passes", type=int, default=30000, metavar="N", help="of training, for each (default: 30000)")
    found.add_argument("--limit", type=int, default=2000, metavar="N", help="test images of the grid (default: 2000)")
    found.add_argument("--tables", nargs="+", choices=["blur", "grid"], default=["blur", "grid"], metavar="NAME")
    found.add_argument(
        "--without",
        nargs="*",
        default=[],
        metavar="NAME",
        help="corrections that are left out, by the beginning of a name",
    )
    found.add_argument("--compare", default="", metavar="WORDS", help="further options of compare, in quotes")
    add_running(found)
    return found


def add_running(found: argparse.ArgumentParser) -> None:
    """Add the options of how stages run, and where."""
    found.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side (default: 1)")
    found.add_argument("--data_dir", type=Path, default=Path("data"), metavar="FOLDER")
    found.add_argument("--output_dir", type=Path, default=Path("output"), metavar="FOLDER")


if __name__ == "__main__":
    main()
