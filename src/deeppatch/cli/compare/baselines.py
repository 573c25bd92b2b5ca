"""Which cheap baselines are missing from what compare has found, and the commands that make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deeppatch.cli.compare.loading import STATISTICS, Member
from deeppatch.cli.context import Context

RANDOM_SEEDS = 5
TRAINED = ("crt_epoch", "passes", "lr", "momentum", "weight_decay", "batch_size")  # as the patch was
OF_PATCH = ("crt_type", "susp_ratio", "susp_side")
OF_DATA = ("noise_type", "severity", "hold_out", "limit", "seed")  # of the runs, not of compare


def missing_baselines(context: Context, found: Mapping[str, Member]) -> list[str]:
    """Return a sentence on the baselines that are missing, with the commands that make them; none where none is.

    They are filters at random over five seeds, trained as the first patch was, and normalisation statistics alone.
    Without them nobody can tell whether a ranking or a training has bought anything. Where the command line names what
    is compared, nothing is missing.
    """
    if context.options.files or context.options.networks:
        return []
    records = [member.source.record or {} for member in found.values()]
    runs = [record for record in records if record.get("stage") == "correct"]
    names, commands = [], []
    patches = [record for record in runs if record["settings"].get("crt_method") == "patch"]
    if patches:
        like = min(patches, key=lambda record: record["settings"].get("fs_method") == "random")
        seeds = _random_seeds(patches, like["settings"])
        if len(seeds) < RANDOM_SEEDS:
            names.append(f"filters at random over {RANDOM_SEEDS} seeds ({len(seeds)} found)")
            fresh = [seed for seed in range(1, 2 * RANDOM_SEEDS) if seed not in seeds][: RANDOM_SEEDS - len(seeds)]
            command = _command(context, like, fs_method="random", crt_method="patch")
            commands.append(f"for seed in {' '.join(map(str, fresh))}; do {command} --filter_seed $seed; done")
    if not any(member.name == STATISTICS for member in found.values()):
        names.append("normalisation statistics only, nothing trained")
        commands.append(_command(context, next(iter(runs), {}), fs_method="perfloss", crt_method="norms", crt_epoch=0))
    if not names:
        return []
    return [f"missing among these networks: {'; '.join(names)}. Make them with: {'; '.join(commands)}"]


def _random_seeds(patches: Sequence[Mapping[str, Any]], like: Mapping[str, Any]) -> set[int | None]:
    """Return the seeds of the patches of random filters that are as large as another one, and trained as long."""
    same = (*OF_PATCH, *TRAINED)
    settings = [record["settings"] for record in patches]
    random = [own for own in settings if own.get("fs_method") == "random"]
    return {own.get("filter_seed") for own in random if all(own.get(key) == like.get(key) for key in same)}


def _command(context: Context, record: Mapping[str, Any], **changes: Any) -> str:
    """Return the command of a correction with the settings of a run, for the images that it was made for."""
    settings, usual = record.get("settings", {}), record.get("defaults", {})
    of_patch = changes["crt_method"] == "patch"
    kept = (*OF_DATA, *OF_PATCH) if of_patch else OF_DATA
    command = context.command("correct", **{key: settings[key] for key in kept if key in settings}, **changes)
    differing = [key for key in (TRAINED if of_patch else ()) if settings.get(key) != usual.get(key)]
    return " ".join([command, *(f"--{key} {settings[key]}" for key in differing)])
