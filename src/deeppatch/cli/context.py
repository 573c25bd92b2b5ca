"""What every stage sets up: parsed options, device, data on it, its folder, and the base model."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from deeppatch import runtime
from deeppatch.artifacts import Checkpoint, Stage, git_revision
from deeppatch.cli import options as command_line
from deeppatch.cli.naming import stage_folder
from deeppatch.data import sources, views
from deeppatch.data.corruptions import NOISES, Blur
from deeppatch.data.dataset import Data
from deeppatch.data.splits import Splits, split
from deeppatch.distributed import ranks
from deeppatch.progress import info
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier

# what changes neither the results nor what can be resumed
INCIDENTAL = {"resume", "prefix", "data_dir", "output_dir", "problems", "command", "defaults"}


@dataclass
class Context:
    """One run of a stage: options, device, and what they imply."""

    options: argparse.Namespace
    device: torch.device
    stage: Stage

    @cached_property
    def source(self) -> sources.Source:
        """The data set as its makers split it."""
        return ranks.on_local_rank0_first(
            lambda: sources.load(self.options.dataset, self.options.data_dir, self.options.seed)
        )

    @cached_property
    def splits(self) -> Splits:
        """Train, val and test on the device."""
        chosen = (getattr(self.options, name, None) for name in ("seed", "limit", "val_share", "bias"))
        parts = split(self.source, *chosen)  # type: ignore[arg-type]
        sizes = f"{len(parts.train)} train, {len(parts.val)} val, {len(parts.test)} test images"
        sizes += f" (--limit {self.options.limit}: subsets)" if self.options.limit else ""
        info(f"data: {self.source.name}, {len(self.source.classes)} classes, {sizes}")
        return Splits(*(part.to(self.device) for part in (parts.train, parts.val, parts.test)))

    @cached_property
    def data(self) -> Data:
        """The same data as methods take them, on the device."""
        parts, source = self.splits, self.source
        return Data(parts.train, parts.val, parts.test, source.classes, source.name, source.augment, source.mirror)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The levels of the degradation, in pixels."""
        return NOISES[self.options.noise_type]

    @cached_property
    def blur(self) -> Blur:
        """The degradation, for images of this data set."""
        height, width = self.splits.val.pixels.shape[-2:]
        return Blur(self.sigmas, height, width, self.device)

    @property
    def example(self) -> torch.Tensor:
        """Two images, to trace networks with."""
        return views.to_float(self.splits.val.pixels[:2])

    def new_network(self) -> torch.nn.Module:
        """Return the network of the zoo, initialised by the seed."""
        torch.manual_seed(self.options.seed)
        return ARCHITECTURES[self.options.model](len(self.source.classes))

    def place(self, model: Classifier) -> Classifier:
        """Move a classifier to the device, in the memory layout that convolutions like best."""
        return model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def folder(self, stage: str, **changes: object) -> Path:
        """Return the folder that `stage` leaves for these options; `changes` override values."""
        return stage_folder(stage, argparse.Namespace(**{**vars(self.options), **changes}))

    def locate(self, stage: str, file: str, **changes: object) -> tuple[Path, str]:
        """Return where an earlier stage leaves a file for these options, and the command that makes it."""
        return self.folder(stage, **changes) / file, self.command(stage, **changes)

    def command(self, stage: str, **changes: object) -> str:
        """Spell the command that runs `stage` with these options; `changes` override values."""
        return command_line.spell(stage, self.options, **changes)

    def checkpoint(self, name: str = "checkpoint.pt", **facts: Any) -> Checkpoint:
        """Return the checkpoint of this stage's training; `facts` join the settings that must not change."""
        settings = {**self.stage.facts["settings"], **facts}
        return Checkpoint(self.stage.folder / name, settings, self.options.resume, writes=self.stage.writes)

    def training_options(self) -> dict[str, Any]:
        """Return the options that every training takes."""
        return {name: getattr(self.options, name) for name in ("lr", "momentum", "weight_decay", "amp")}

    def already_finished(self) -> bool:
        """Tell whether -r was asked of a run that has finished, from the same inputs."""
        record = ranks.broadcast_from_rank0(self.stage.finished) if self.options.resume else None
        if record is None or any(record["inputs"].get(name) != digest for name, digest in self.stage.inputs.items()):
            return False
        info(f"finished already: {self.stage.folder}; run without -r to do it again")
        return True


def open_stage(options: argparse.Namespace, stage: str) -> Context:
    """Prepare machine and folder for one run of a stage."""
    device = runtime.pick_device(options.device, options.gpu)
    options = argparse.Namespace(**{**vars(options), "device": device.type})  # which `auto` leaves open
    runtime.prepare(options.seed)
    relevant = {name: value for name, value in sorted(vars(options).items()) if name not in INCIDENTAL}
    settings = json.loads(json.dumps(relevant, default=str))  # paths as text
    facts = {"command": options.command, "settings": settings, "git": git_revision(), **runtime.describe(device)}
    folder = stage_folder(stage, options)
    return Context(options, device, Stage(options.output_dir, folder, facts, writes=runtime.rank() == 0))
