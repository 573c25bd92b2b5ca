"""What a study runs: a matrix of models, data, degradations, seeds, methods and ratios as commands of the stages.

A configuration is a mapping, as a file under workflow/config holds it; docs/study.md explains its keys. Nothing here
imports torch. Which earlier run a command reads is asked of the command line itself (`cli.locating.roles`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import chains
import schema
import source  # noqa: F401

from deeppatch.cli.corrections import TRAINED_CORRECTIONS, TRAINING
from deeppatch.cli.locating import roles
from deeppatch.cli.options import DEFAULT_RATIO, RepairOptions
from deeppatch.cli.parsing import parse_stage
from deeppatch.data.names import slug
from deeppatch.errors import UserError, closest
from deeppatch.retrain.names import METHODS as WHOLE
from deeppatch.zoo.names import model_slug

RULES = ("pretrain", "assess", "correct", "evaluate", "compare", *chains.STAGES)
PUBLISHED, FINETUNE, SWITCHED, BASE = "published", "finetune", ", switched", "before repair"
# names of methods that are not the value of -c, and their options
METHODS: dict[str, dict[str, object]] = {
    "patch": {"crt_method": "patch", "fs_method": "perfloss"},
    "random": {"crt_method": "patch", "fs_method": "random"},
    "units": {"crt_method": "patch", "crt_type": "crtunit", "fs_method": "perfloss"},
    "statistics": {"crt_method": "norms", "epochs": 0},
    **{name: {"crt_method": name} for name in WHOLE},
}
MACHINE = {"threads": 1, "mem_mb": 2000, "runtime": 240}  # of a rule that says nothing else; minutes, for clusters


@dataclass(frozen=True)
class Job:
    """One command of a study.

    Args:
        rule: The stage.
        name: What the folder of its record is called.
        words: The arguments of the command, without files and without where data and artifacts lie.
        reads: The jobs whose files it reads, by the option that names the file.
        networks: The jobs whose networks it compares.
        about: What the study's table says of it: model, data, degradation, seed, and method, of a correction also the
            ratio.
        options: What the stage makes of the arguments.
        chain: The chain that it ends, where it ends one.
    """

    rule: str
    name: str
    words: tuple[str, ...]
    reads: Mapping[str, str] = field(default_factory=dict)
    networks: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    options: Any = field(default=None, repr=False, compare=False)
    chain: str = ""

    @property
    def key(self) -> str:
        """The rule and the name, by which jobs name each other."""
        return f"{self.rule}/{self.name}"

    @property
    def called(self) -> str:
        """What tables call the network that a correction makes or that an evaluation switches."""
        ratio, method = self.about["ratio"], self.about["method"]
        size = "" if ratio is None else f", ratio {ratio:g}"
        return f"{method}{size}{SWITCHED * bool(self.about.get('switched'))}"


def jobs(configuration: Mapping[str, Any]) -> dict[str, Job]:
    """Return all commands of a study by their keys, each after those that it reads; UserError for a wrong key."""
    check(configuration)
    found: dict[str, Job] = {}
    compared: dict[str, tuple[_Cell, list[str]]] = {}
    for name, chain in configuration.get("chains", {}).items():
        _add_chain(configuration, name, chain, found)
    for matrix in configuration.get("matrices", {}).values():
        for cell in cells(configuration, matrix, found):
            networks = list(cell.networks())
            place = content([cell.about, cell.base, cell.parsed("compare", {})[1]])
            compared.setdefault(place, (cell, []))[1].extend(networks)
    for cell, networks in compared.values():
        cell.add("compare", {}, "", networks=tuple(dict.fromkeys(networks)))
    check_names(found)
    return found


def check(configuration: Mapping[str, Any]) -> None:
    """Raise UserError where a configuration holds what its schema does not allow, or an unknown method."""
    schema.check(configuration)
    if not configuration.get("matrices") and not configuration.get("chains"):
        raise UserError("the configuration has no matrices; give at least one, as workflow/config/demo.yaml does")
    for name, chain in configuration.get("chains", {}).items():
        chains.check(name, chain)
    known = {**METHODS, **configuration.get("methods", {})}
    if BASE in known:
        raise UserError(f"methods: {BASE} is what tables call the network before its repair; choose another name")
    for name, matrix in configuration.get("matrices", {}).items():
        for method in matrix["methods"]:
            if method not in known:
                there = ", ".join(sorted(known))
                raise UserError(f"methods of matrix {name}: no {method}{closest(method, known)}; there are {there}")
        for method in matrix.get("switched", []):
            if method not in matrix["methods"]:
                there = ", ".join(matrix["methods"])
                raise UserError(f"switched of matrix {name}: {method} is none of its methods, which are {there}")


def check_names(found: Mapping[str, Job]) -> None:
    """Raise UserError where tables would call two comparisons of a study, or two networks of one, by the same name."""
    compared = set()
    for job in [job for job in found.values() if job.rule == "compare"]:
        place = f"{job.about['model']} on {job.about['data']}, {job.about['degradation']}, seed {job.about['seed']}"
        if place in compared:
            raise UserError(
                f"two matrices have {place}, but other options of the model, of the degradation or of compare; "
                "name the degradation of one of them differently"
            )
        compared.add(place)
        calls = [found[key].called for key in job.networks]
        if twice := [name for name in calls if calls.count(name) > 1]:
            advice = "give one of them a name of its own under methods, with its options"
            if twice[0].endswith(SWITCHED):
                advice += f"; or write {FINETUNE} in both matrices, or `switched: []` in one"
            raise UserError(f"{place}: two different runs would be called {twice[0]}; {advice}")


def _add_chain(configuration: Mapping[str, Any], name: str, chain: Mapping[str, Any], found: dict[str, Job]) -> None:
    """Add the commands of a chain: of each method its stages, each of which reads what the one before it left."""
    for about, model, method in chains.settings(chain):
        cell, made = _Cell(configuration, chain, about, model, {}, found), None
        for number, stage in enumerate(chain["stages"], 1):
            given = {"method": method} if method else {}
            last = {"chain": name} if number == len(chain["stages"]) else {}
            made = cell.add(stage, given, method or "", degraded=False, made=made, **last)


def cells(configuration: Mapping[str, Any], matrix: Mapping[str, Any], found: dict[str, Job]) -> Iterator[_Cell]:
    """Yield what a matrix has for each model, data set, degradation and seed."""
    degradations = matrix.get("degradations") or {"blur": {}}
    for model, data, degradation, seed in itertools.product(
        matrix["models"], matrix["data"], degradations, matrix.get("seeds") or [RepairOptions.seed]
    ):
        yield _Cell(
            configuration,
            matrix,
            {"model": model, "data": data, "degradation": degradation, "seed": seed},
            dict(matrix["models"][model] or {}) if isinstance(matrix["models"], Mapping) else {},
            dict(degradations[degradation] or {}),
            found,
        )


@dataclass
class _Cell:
    """The commands for one model, data set, degradation and seed."""

    configuration: Mapping[str, Any]
    matrix: Mapping[str, Any]
    about: Mapping[str, Any]
    model: dict[str, object]
    degradation: dict[str, object]
    found: dict[str, Job]

    @property
    def words(self) -> list[str]:
        """The arguments that all commands share."""
        named = ["-m", self.about["model"], "-d", str(self.about["data"]), "--seed", str(self.about["seed"])]
        return [*named, *spelled({**self.configuration.get("options", {}), **(self.matrix.get("options") or {})})]

    @property
    def base(self) -> str:
        """The job that makes the network before its repair, which does not depend on the degradation."""
        weights = self.model.get("weights", PUBLISHED)
        given = {name: value for name, value in self.model.items() if name != "weights"}
        given |= {} if weights == PUBLISHED else {"weights": weights}
        return self.add("pretrain", given, "", degraded=False)

    def options(self, rule: str) -> dict[str, object]:
        """Return the options that the matrix has for a rule."""
        return dict(self.matrix.get(rule) or {})

    def networks(self) -> Iterator[str]:
        """Yield the jobs that make or switch networks, adding them and what they read."""
        for name in self.matrix["methods"]:
            method = self._method(name)
            patch = method["crt_method"] == "patch"
            ratios = [method["susp_ratio"]] if "susp_ratio" in method else self.matrix.get("ratios") or [DEFAULT_RATIO]
            for ratio in ratios if patch else [None]:
                made = self._correct(name, ratio)
                yield made
                if name in self.matrix.get("switched", [name] if patch else []):
                    yield self._evaluate(name, ratio, made)

    def add(self, rule: str, options: Mapping[str, object], label: str, *, degraded: bool = True, **known: Any) -> str:
        """Add a job, unless it is there already, and return its key."""
        words, parsed = self.parsed(rule, options, degraded=degraded)
        about = {**self.about, **known.pop("about", {})}
        reads = self._reads(rule, parsed, known.pop("made", None))
        digest = hashlib.sha256(content([rule, parsed, reads, known]).encode()).hexdigest()[:6]
        place = [model_slug(str(about["model"])), slug(str(about["data"]))]
        place += [str(about["degradation"])] if degraded else []
        place += [f"seed{about['seed']}", *([label] if label else []), digest]
        job = Job(rule, "-".join(place), words, reads, about=about, options=parsed, **known)
        self.found.setdefault(job.key, job)
        return job.key

    def parsed(
        self, rule: str, options: Mapping[str, object], *, degraded: bool = True
    ) -> tuple[tuple[str, ...], RepairOptions]:
        """Return the arguments of a command, and what the stage makes of them."""
        given = spelled({**self.options(rule), **options})
        words = (*self.words, *(spelled(self.degradation) if degraded else []), *given)
        return words, parse_stage(rule, words, RepairOptions.prefix)

    def _reads(self, rule: str, options: Any, made: str | None) -> dict[str, str]:
        """Return the jobs that leave what a command reads, by option."""
        found = {}
        for role in roles(rule, options).values():
            if role.stage == "pretrain":
                found[role.option] = self.base
            elif role.stage == "assess":
                found[role.option] = self.add("assess", {"fs_method": options.fs_method}, options.fs_method)
            elif role.option == "finetuned" and (rule == "correct" or options.crt_method == "patch"):
                if rule == "correct" or FINETUNE in self.matrix["methods"]:
                    found[role.option] = self._correct(FINETUNE, None)
            elif made is not None:
                found[role.option] = made
        return found

    def _method(self, name: str) -> dict[str, object]:
        return {**METHODS, **self.configuration.get("methods", {})}[name]

    def _correct(self, name: str, ratio: float | None) -> str:
        method = self._method(name)
        own = dict(method)
        if method["crt_method"] not in TRAINED_CORRECTIONS:
            own |= dict.fromkeys(self.options("correct"))  # which say how to train
        own |= {} if ratio is None else {"susp_ratio": ratio}
        return self.add("correct", own, _label(name, ratio), about={"method": name, "ratio": ratio})

    def _evaluate(self, name: str, ratio: float | None, made: str) -> str:
        given = {key: value for key, value in self._method(name).items() if key not in ("epochs", *TRAINING)}
        given |= {} if ratio is None else {"susp_ratio": ratio}
        about = {"method": name, "ratio": ratio, "switched": True}
        return self.add("evaluate", given, _label(name, ratio), made=made, about=about)


def spelled(options: Mapping[str, object]) -> list[str]:
    """Return options as words of a command line; True is a switch, None and False leave an option out."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *([] if value is True else map(str, values))]
    return words


def content(parts: Sequence[object]) -> str:
    """Return as text what parts hold; options that mean the same are the same, however they were written."""

    def plain(each: object) -> object:
        return (
            {name: value for name, value in vars(each).items() if name != "command"}
            if is_dataclass(each)
            else str(each)
        )

    return json.dumps(parts, sort_keys=True, default=plain)


def places(configuration: Mapping[str, Any]) -> list[str]:
    """Return the words that say where data and artifacts lie, and on which device to compute."""
    return spelled({name: configuration.get(name) for name in ("data_dir", "output_dir", "device")})


def folder(configuration: Mapping[str, Any]) -> str:
    """Return the folder of a study, whose name is that of the configuration's file, for links to records and logs."""
    output, name = configuration.get("output_dir", RepairOptions.output_dir), Path(configuration["file"]).stem
    found = os.path.normpath(Path(output, "studies", name))
    if set("{}") & set(found):  # which have a meaning for Snakemake
        raise UserError(f"{found}: a study's folder can have no braces in its name; choose another")
    return found


def machine(configuration: Mapping[str, Any], rule: str) -> dict[str, Any]:
    """Return threads, memory in MB, and further resources of a rule."""
    return {**MACHINE, **configuration.get("rules", {}).get(rule, {})}


def _label(name: str, ratio: float | None) -> str:
    return name if ratio is None else f"{name}-ratio{ratio:g}"
