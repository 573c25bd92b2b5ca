"""One run of a stage: its options, the device, the data on it, what it reads, and the folder that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import nn

from deeppatch import runtime
from deeppatch.artifacts import Checkpoint
from deeppatch.cli import options as command_line
from deeppatch.cli.locating import Found, Role, locate, locate_all, roles, run_folder
from deeppatch.cli.naming import idle_in, own_settings, unused_options
from deeppatch.cli.options import StageOptions
from deeppatch.cli.resuming import starts_anew
from deeppatch.cli.sizing import sizing_of
from deeppatch.data import corruption_names, digest, names, sources, views
from deeppatch.data.corruption_names import Specification
from deeppatch.data.corruptions import CleanImages, Corruption, create, is_for_test_only, read_files
from deeppatch.data.dataset import Data
from deeppatch.data.given_split import GivenSplit, given_split
from deeppatch.data.scaling import Scaling
from deeppatch.data.splits import Splits, split
from deeppatch.distributed import ranks
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.progress import info
from deeppatch.stage import Stage, git_revision
from deeppatch.storage import read_given
from deeppatch.zoo.resolve import Architecture, resolve

Network = TypeVar("Network", bound=nn.Module)


@dataclass
class Context:
    """One run of a stage: options, device, and what they imply. `found` is what it reads of earlier stages, by role."""

    options: Any
    device: torch.device
    stage: Stage
    found: Mapping[str, Found] = field(default_factory=dict)

    @cached_property
    def source(self) -> sources.Source:
        """The data set in its official split."""
        return ranks.on_local_rank0_first(
            lambda: sources.load(
                self.options.dataset, self.options.data_dir, self.options.seed, sizing_of(self.options)
            )
        )

    @property
    def scaling(self) -> Scaling:
        """How further image files become as large as the images of the data set."""
        height, width = self.source.test.pixels.shape[-2:]
        return Scaling(height, width, self.options.resize == "squash")

    @cached_property
    def splits(self) -> Splits:
        """Train, val and test on the device; StaleArtifact where what the stage reads was made from other data."""
        seed, limit, val_share = self.options.seed, self.options.limit, self.options.val_share
        parts = split(self.source, seed, limit, val_share, getattr(self.options, "bias", None), self.given_split)
        sizes = f"{len(parts.train)} train, {len(parts.val)} val, {len(parts.test)} test images"
        sizes += f" (--limit {self.options.limit}: subsets)" if self.options.limit else ""
        height, width = parts.test.pixels.shape[-2:]
        info(f"data: {self.source.name}, {len(self.source.classes)} classes, {sizes} of {width}x{height} pixels")
        self._check_same_data(parts)
        return Splits(*(part.to(self.device) for part in (parts.train, parts.val, parts.test)))

    @cached_property
    def given_split(self) -> GivenSplit | None:
        """The train and val images that --splits names; None where they are drawn."""
        path = getattr(self.options, "splits", None)
        if path is None:
            return None
        content = read_given(path)
        self.stage.inherit(path, content)
        return given_split(content, self.options.bias, path)

    @cached_property
    def data(self) -> Data:
        """The same as one value, with the names of the classes and how images may be augmented."""
        parts, source = self.splits, self.source
        return Data(
            parts.train, parts.val, parts.test, source.classes, source.name, crop=source.augment, mirror=source.mirror
        )

    @property
    def about(self) -> dict[str, Any]:
        """What travels inside of weights and patches: the names of the classes, and the size of the images."""
        return {"classes": list(self.source.classes), "image_size": list(self.source.test.pixels.shape[-2:])}

    @cached_property
    def corruption(self) -> Corruption:
        """The degradation, without held-out types. UserError where a stage cannot have it, which needs more than test.

        Only pretrain and compare can: they measure.
        """
        found = self._degradation(self.specification)
        if is_for_test_only(found) and self.stage.facts["stage"] not in ("pretrain", "eval", "compare"):
            raise UserError(
                f"-n {self.options.noise_type}: some of these have degraded test images only, which ranking, training "
                "and calibration must not see; hold them out with --hold_out, or measure them with pretrain or compare"
            )
        return found

    @cached_property
    def held_out(self) -> Corruption | None:
        """The degradations that are only measured."""
        if not self.options.hold_out:
            return None
        whole = corruption_names.parse(self.options.noise_type, self.options.severity)
        return self._degradation(whole.held_out(self.options.hold_out))

    @property
    def specification(self) -> Specification:
        """The degradations without those that are held out."""
        whole = corruption_names.parse(self.options.noise_type, self.options.severity)
        return whole.without(self.options.hold_out) if self.options.hold_out else whole

    def _degradation(self, specification: Specification) -> Corruption:
        def from_files(name: str) -> Corruption:
            return read_files(name, specification, self._clean)

        return create(specification, seed=self.options.seed, from_files=from_files)

    @cached_property
    def _clean(self) -> CleanImages:
        """The clean images, to which degraded ones in files belong."""
        options, source, parts = self.options, self.source, self.splits
        named = {name: getattr(parts, name) for name in ("train", "val", "test")}
        if getattr(options, "bias", None):
            raise UserError(f"--bias {options.bias} splits anew; degraded images in files can be used without it")
        return CleanImages(
            named,
            source.classes,
            official=(source.train, source.test),
            names=sources.image_names(options.dataset, options.data_dir),
            seed=options.seed,
            val_share=options.val_share,
            limit=options.limit,
            scaling=self.scaling,
        )

    @property
    def example(self) -> torch.Tensor:
        """Two images, to trace networks with."""
        return views.to_float(self.splits.val.pixels[:2])

    @cached_property
    def architecture(self) -> Architecture:
        """The network that -m names."""
        return resolve(self.options.model, self.options.image_size)

    def new_network(self) -> torch.nn.Module:
        """Return the network, initialised by the seed."""
        torch.manual_seed(self.options.seed)
        return self.architecture.build(len(self.source.classes))

    def place(self, model: Network) -> Network:
        """Move a classifier to the device, in the memory layout that convolutions like best."""
        runtime.to_channels_last(model)
        return model.to(self.device).eval()

    def locate(self, stage: str, file: str, **changes: object) -> tuple[Path, str]:
        """Return where a file of an earlier stage is, and the command that makes it."""
        for name, role in roles(self.stage.facts["stage"], self.options).items():
            wanted = {**role.changes, **changes}
            if role.stage == stage and wanted == dict(role.changes) and name in self.found:
                return self.found[name].path.with_name(file), self.found[name].command
        found = locate(Role(stage, file, "", changes), self.options, self.found.get("base"))
        return found.path, found.command

    def folder(self, stage: str, **changes: object) -> Path:
        """Return the folder that this run's own stage leaves with some options changed, or that of an earlier stage."""
        if stage == self.stage.facts["stage"]:
            return run_folder(stage, SimpleNamespace(**{**vars(self.options), **changes}), self.found)
        return self.locate(stage, "run.json", **changes)[0].parent

    def command(self, stage: str, **changes: object) -> str:
        """Spell the command that runs `stage` with these options; `changes` override values."""
        return command_line.command_for(stage, self.options, **changes)

    def checkpoint(self, name: str = "checkpoint.pt", **facts: Any) -> Checkpoint:
        """Return the checkpoint of this stage's training; `facts` join the settings that must not change."""
        self.begin()
        settings = {**self.stage.facts["settings"], **facts}
        path = self.stage.unfinished / name
        return Checkpoint(path, settings, self.options.resume, writes=self.stage.writes, watch=self.stage.watch)

    def training_options(self) -> dict[str, Any]:
        """Return the options that every training takes."""
        return {name: getattr(self.options, name) for name in ("lr", "momentum", "weight_decay", "amp")}

    def already_finished(self) -> bool:
        """Tell whether -r was asked of a run that has finished, from the same inputs; if not, the run begins."""
        record = ranks.broadcast_from_rank0(self.stage.finished) if self.options.resume else None
        inputs = self.stage.inputs.items()
        if record is None or any(record["inputs"].get(name) != found for name, found in inputs):
            if self.options.resume and record is None and (reason := starts_anew(self.stage, self.options)):
                info(reason)
            self.begin()
            return False
        self.stage.tidy()
        info(f"finished already: {self.stage.folder}; run without -r to do it again")
        return True

    def begin(self) -> None:
        """Take the folder for this run, or raise the same UserError on every rank."""

        def taken() -> str | None:
            try:
                self.stage.begin(resume=self.options.resume)
            except UserError as error:  # another writer, or a full disk
                return str(error)
            return None

        if refusal := ranks.broadcast_from_rank0(taken):
            raise UserError(refusal)

    def _check_same_data(self, parts: Splits) -> None:
        cache = Path(self.options.output_dir, names.slug(self.options.dataset), "contents")
        named = {name: getattr(parts, name) for name in ("train", "val", "test")}
        now = ranks.broadcast_from_rank0(lambda: digest.describe(named, self.source.classes, cache))
        for found in self.found.values():
            record = found.record or {}
            before = record.get("data")
            if before and self._is_other_subset(record["settings"]):
                before = {**before, "parts": {}}
            if before and (changes := "; ".join(digest.differences(before, now))):
                raise StaleArtifact(
                    f"{found.path} was made from other data: {changes}; make it again with: {found.command}"
                )
        self.stage.facts.setdefault("data", now)  # a weak model's, in compose, are not the stage's own

    def _is_other_subset(self, settings: Mapping[str, Any]) -> bool:
        """Tell whether a run read other subsets (--limit) of the same split; with --bias it is another split."""
        return not settings.get("bias") and settings.get("limit") != self.options.limit


def open_stage(options: StageOptions, stage: str) -> Context:
    """Prepare machine and folder for one run of a stage, and find what it reads."""
    found = locate_all(stage, options)
    device = runtime.pick_device(options.device, options.gpu)
    options = replace(options, device=device.type)  # which `auto` leaves open
    for name in unused_options(stage, options):
        info(f"--{name} {getattr(options, name)} changes nothing in {idle_in(stage, options, name)}")
    runtime.prepare(options.seed)
    facts = {
        "stage": stage,
        "command": options.command,
        "settings": own_settings(stage, options),
        "defaults": own_settings(stage, _defaults(options)),
        "consumed": {role: _provenance(each, options.output_dir) for role, each in found.items()},
        "git": git_revision(),
        **runtime.describe(device),
    }
    folder = run_folder(stage, options, found)
    return Context(options, device, Stage(options.output_dir, folder, facts, writes=runtime.rank() == 0), found)


def _defaults(options: StageOptions) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(options), **options.defaults, "device": options.device})


def _provenance(found: Found, output: Path) -> dict[str, Any]:
    """Return what a run's record says of something that the run has read: the settings that made it, above all."""
    path, root = found.path.resolve(), Path(output).resolve()
    record = found.record or {}
    kept: dict[str, Any] = {
        name: record[name] for name in ("stage", "command", "settings", "consumed") if name in record
    }
    name = str(path.relative_to(root) if path.is_relative_to(root) else path)
    return {"file": name, "sha256": found.digest, "default": found.is_default, **kept}
