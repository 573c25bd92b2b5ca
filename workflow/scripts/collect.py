"""Collect the ledgers of a study over seeds: a table, differences with their spread, a picture, and the pages.

python workflow/scripts/collect.py CONFIG --records FOLDER [--output FILE]

Reads what the compare jobs and the ends of chains of a study have left, those that are finished. Writes, with R for
`results` of the configuration, or else `results` in the folder of the records: R.csv with a row for each network and
seed, R-differences.csv with means over seeds of the changes against the network before its repair and against
fine-tuning, R-levels.csv and R-levels.png with each level of blur, R-adaptation.csv where test-time adaptation was
measured, R.png, for a chain C R-C.csv, and beside each table a JSON file that says where it is from. With `render` the
tables of the pages are filled again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chains
import frontier
import matrix
import pandas as pd
import repairs
import schema
import source  # noqa: F401
from exit_status import exit_status
from matrix import BASE, FINETUNE
from repairs import CELL

from deeppatch.errors import UserError
from deeppatch.ledger.pools import ALL, BLURRED, DEGRADED, HELD_OUT
from deeppatch.ledger.records import CLEAN, MIXED
from deeppatch.ledger.summary import columns_of
from deeppatch.metrics.intervals import mean_interval
from deeppatch.storage import RECORD

ROOT = Path(__file__).resolve().parents[2]
OVER_SEEDS, OVER_IMAGES = "seeds", "images"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables, the picture and the pages, and say in --output which files these are."""
    options = parser().parse_args(arguments)
    return exit_status(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Read what the study has left, and write all files."""
    configuration = schema.read(options.config)
    jobs = matrix.jobs(configuration)
    ledgers, ends = list(measured(jobs, options.records)), list(ended(jobs, options.records))
    if not ledgers and not ends:
        raise UserError(f"no finished comparison under {options.records}; run the study first")
    ours = options.config.resolve().parent == ROOT / "workflow" / "config"
    finished = [folder / RECORD for key in jobs if (folder := folder_of(options.records, key))]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in finished]
    study = Study(options.config.stem if ours else str(options.config), configuration, records)
    results = Path(configuration.get("results", options.records / "results"))
    results.parent.mkdir(parents=True, exist_ok=True)
    files = write_ledgers(study, ledgers, results) if ledgers else []
    files += write_chains(study, ends, results)
    if configuration.get("render"):
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / "tables.py")], check=True)  # noqa: S603
    if options.output:
        options.output.write_text(json.dumps([str(file) for file in files]) + "\n", encoding="utf-8")
    print("\n".join(f"written: {file}" for file in files))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, such as workflow/config/demo.yaml")
    found.add_argument("--records", type=Path, required=True, metavar="FOLDER", help="OUTPUT/studies/NAME")
    found.add_argument("--output", type=Path, metavar="FILE", help="a list of what was written, as JSON")
    return found


@dataclass(frozen=True)
class Measured:
    """What one compare job has left: its job, the tidy table of its ledger, and networks by name.

    `names` has what the study calls each network.
    """

    job: matrix.Job
    folder: Path
    tidy: pd.DataFrame
    networks: Mapping[str, Mapping[str, Any]]
    names: Mapping[str, str]


def measured(jobs: Mapping[str, matrix.Job], records: Path) -> Iterator[Measured]:
    """Yield what the finished compare jobs have left."""
    for key, job in jobs.items():
        if job.rule != "compare" or (folder := folder_of(records, key)) is None:
            continue
        ledger = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
        called = {str(folder_of(records, name)): jobs[name].called for name in job.networks}
        output = folder.parents[2]
        names = {ledger["base"]["name"]: BASE}
        for network, row in ledger["networks"].items():
            place = str((output / str(row["facts"].get("file", ""))).resolve().parent)
            names.setdefault(network, called.get(place, network))
        yield Measured(job, folder, pd.read_csv(folder / "ledger.csv"), ledger["networks"], names)


@dataclass(frozen=True)
class Ended:
    """What the last job of a chain has left: the job and its table."""

    job: matrix.Job
    table: pd.DataFrame


def ended(jobs: Mapping[str, matrix.Job], records: Path) -> Iterator[Ended]:
    """Yield what the finished last jobs of chains have left."""
    for key, job in jobs.items():
        if job.chain and (folder := folder_of(records, key)):
            yield Ended(job, chains.table(folder, job.about, job.rule))


@dataclass(frozen=True)
class Study:
    """A study: its name in workflow/config, or its file, its configuration, and the records of its finished jobs."""

    name: str
    configuration: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]


def write_ledgers(study: Study, ledgers: Sequence[Measured], results: Path) -> list[Path]:
    """Write the tables and the picture over all ledgers, and return the files."""
    table = pd.concat([accuracies(each) for each in ledgers], ignore_index=True)
    levels = blurred(ledgers)
    tables = {"": table, "-levels": levels, "-differences": differences(ledgers), "-adaptation": adaptation(ledgers)}
    clean = max(int(found.tidy[found.tidy["view"] == CLEAN]["n"].max()) for found in ledgers)
    files = []
    for suffix, frame in tables.items():
        if len(frame):
            stem = results.with_name(results.name + suffix)
            files += write(frame, stem, study, ledgers, f"up to {clean} test images")
    pictures = [results.with_name(f"{results.name}.png")]
    frontier.draw(table, BASE, pictures[0])
    if len(levels):
        pictures.append(results.with_name(f"{results.name}-levels.png"))
        repairs.draw(levels, pictures[1])
    return [*files, *pictures]


def write_chains(study: Study, ends: Sequence[Ended], results: Path) -> list[Path]:
    """Write a table for each chain, and return the files."""
    files = []
    for chain in dict.fromkeys(each.job.chain for each in ends):
        own = [each for each in ends if each.job.chain == chain]
        frame = pd.concat([each.table for each in own], ignore_index=True)
        files += write(frame, results.with_name(f"{results.name}-{chain}"), study, own, "images")
    return files


def folder_of(records: Path, key: str) -> Path | None:
    """Return the folder that a job has left, to which the link to its record leads; None where it has not finished."""
    record = records / key / RECORD
    return record.resolve().parent if record.exists() else None


def accuracies(found: Measured) -> pd.DataFrame:
    """Return a row for each network: what it stores, and accuracy in percent, clean and in means over degradations.

    `clean lost` is in points, against the network before its repair.
    """
    means = found.tidy[(found.tidy.severity == 0) & (found.tidy.measure == "accuracy")]
    views = shown(list(dict.fromkeys(means["view"])))
    rows = []
    for network, name in found.names.items():
        own = means[means.network == network].set_index("view")["estimate"]
        facts = found.networks[network]
        rows.append(
            {
                **{key: found.job.about[key] for key in CELL},
                "network": name,
                "seed": found.job.about["seed"],
                "bytes": facts["bytes"],
                "passes": facts["passes"],
                **{view: round(float(own[view]), 2) for view in views if view in own.index},
            }
        )
    frame = pd.DataFrame(rows)
    before = frame.loc[frame["network"] == BASE, CLEAN].iloc[0]
    frame.insert(frame.columns.get_loc(CLEAN) + 1, "clean lost", (before - frame[CLEAN]).round(2))
    return frame


def shown(views: Sequence[str]) -> list[str]:
    """Return which means a table has: those of the ledger, and without blur and all 15 types that of what there is."""
    found = columns_of(views)
    if DEGRADED in views and not {BLURRED, ALL} & set(found):
        found.insert(len([view for view in found if view not in (HELD_OUT, MIXED)]), DEGRADED)
    return found


def blurred(ledgers: Sequence[Measured]) -> pd.DataFrame:
    """Return what repairs against blur alone reach at each of its levels."""
    frames = [
        repairs.levels(found.tidy, found.names, {key: found.job.about[key] for key in (*CELL, "seed")})
        for found in ledgers
    ]
    there = [frame for frame in frames if len(frame)]
    return pd.concat(there, ignore_index=True) if there else pd.DataFrame()


def differences(ledgers: Sequence[Measured]) -> pd.DataFrame:
    """Return the paired differences in accuracy against the network before its repair, and against fine-tuning.

    Over several seeds: the mean of the seeds' differences, their standard deviation, and Student's 95 % interval. Of
    one seed, against the network before its repair: the ledger's interval over images.
    """
    values: dict[tuple[Any, ...], dict[int, tuple[float, float, float]]] = {}
    for found in ledgers:
        cell, seed = tuple(found.job.about[key] for key in CELL), found.job.about["seed"]
        for row in found.tidy[(found.tidy.severity == 0) & (found.tidy.measure == "change")].to_dict("records"):
            if (network := str(row["network"])) in found.names:
                key = (*cell, found.names[network], BASE, row["view"])
                values.setdefault(key, {})[seed] = (row["estimate"], row["low"], row["high"])
    for (*cell, network, _base, view), own in list(values.items()):
        tuned = values.get((*cell, FINETUNE, BASE, view), {})
        if network != FINETUNE and (both := sorted(own.keys() & tuned.keys())):
            pairs = {seed: (own[seed][0] - tuned[seed][0], float("nan"), float("nan")) for seed in both}
            values[*cell, network, FINETUNE, view] = pairs
    rows = [
        dict(zip((*CELL, "network", "against", "view"), key, strict=True)) | _over_seeds(list(own.values()))
        for key, own in values.items()
    ]
    frame = pd.DataFrame(rows)
    wanted = shown(list(dict.fromkeys(frame["view"]))) if rows else []
    return frame[frame["view"].isin(wanted)].reset_index(drop=True) if rows else frame


def _over_seeds(found: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Return the mean of differences, their spread, and an interval."""
    changes = [change for change, _low, _high in found]
    if len(found) == 1:
        change, low, high = found[0]
        spread, over = float("nan"), OVER_IMAGES if low == low else ""
    else:
        interval = mean_interval(changes)
        change, low, high = interval.estimate, interval.low, interval.high
        spread, over = statistics.stdev(changes), OVER_SEEDS
    numbers = {"difference": change, "sd": spread, "low": low, "high": high}
    return {**{name: round(value, 2) for name, value in numbers.items()}, "interval over": over, "seeds": len(found)}


def adaptation(ledgers: Sequence[Measured]) -> pd.DataFrame:
    """Return the tables of test-time adaptation that compare has left, with the study's names of networks."""
    frames = []
    for found in ledgers:
        if (path := found.folder / "adaptation.csv").is_file():
            frame = pd.read_csv(path)
            first = frame.columns[0]
            frame[first] = [found.names.get(name, name) for name in frame[first]]
            about = {**{key: found.job.about[key] for key in CELL}, "seed": found.job.about["seed"]}
            frames.append(pd.concat([pd.DataFrame([about] * len(frame)), frame], axis=1))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def write(
    frame: pd.DataFrame,
    stem: Path,
    study: Study,
    sources: Sequence[Measured | Ended],
    images: str,
) -> list[Path]:
    """Write a table as CSV and, beside it, what benchmarks/tables.py tells of it; return both files."""
    paths = [stem.with_name(f"{stem.name}{ending}") for ending in (".csv", ".json")]
    frame.to_csv(paths[0], index=False)
    seeds = sorted({found.job.about["seed"] for found in sources})
    revisions = list(dict.fromkeys(shortened(record.get("git")) for record in study.records))
    machines = [f"{each['hardware']}, threads: {each['threads']}, torch {each['torch']}" for each in study.records]
    data = ", ".join(dict.fromkeys(str(found.job.about["data"]) for found in sources))
    facts = {
        "question": study.configuration.get("question", f"What does the study {study.name} find?"),
        "commands": [f"pipenv run study {study.name}"],
        "revision": revisions[0] if len(revisions) == 1 else f"revisions {', '.join(revisions)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seeds": seeds,
        "images": f"{images} of {data}",
        "hardware": "; ".join(dict.fromkeys(machines)),
        "n": len(seeds),
        "configuration": dict(study.configuration),
    }
    paths[1].write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return paths


def shortened(revision: str | None) -> str:
    """Return a revision as pages name it, by seven digits."""
    return f"{revision[:7]}{'-dirty' * revision.endswith('-dirty')}" if revision else "unknown"


if __name__ == "__main__":
    sys.exit(main())
