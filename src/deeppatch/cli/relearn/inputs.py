"""The inputs of relearn: annotate's selection, labels from a user, the warm start, and results of finished runs."""

from __future__ import annotations

import contextlib
import io
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from deeppatch.artifacts import DAMAGE, state_digest
from deeppatch.cache import ContentCache
from deeppatch.cli.annotate.inputs import encoder_of, judge_of, selection_inputs
from deeppatch.cli.annotate.report import PAGE, TABLE
from deeppatch.cli.context import Context
from deeppatch.cli.naming import model_folder
from deeppatch.cli.predecessors import given_or_read
from deeppatch.cli.relearn.changed_pool import in_present_pool, pool_of_selection
from deeppatch.data.label_file import count_labels, read_labels
from deeppatch.data.pool import Pool
from deeppatch.errors import OtherBase, StaleArtifact, UserError
from deeppatch.hybrid.budget import affordable
from deeppatch.hybrid.relearning import warm_start_facts
from deeppatch.hybrid.rounds import choose_further, in_rounds, round_budgets
from deeppatch.hybrid.safe_repair import SafeTraining
from deeppatch.hybrid.selection import UNKNOWN, Selection, selection_from_bytes
from deeppatch.hybrid.training_data import Recipe, RepairSettings
from deeppatch.progress import info
from deeppatch.storage import RECORD, parse_json, read_given
from deeppatch.zoo.classifier import Classifier


def load_selection(context: Context, model: Classifier, pool: Pool) -> Selection:
    """Read annotate's selection for these options, check it against pool and model, and add the labels of --labels."""
    options = context.options
    found = context.found["selection"]
    path, command = found.path, found.command
    selection = selection_from_bytes(given_or_read(context, found), path)
    if selection.facts["base"] != state_digest(model.state_dict()):
        raise OtherBase(path, command)
    info(f"inherited {path} ({len(selection.bought)} images to label)")
    chosen_from = pool_of_selection(selection, pool, path, command)
    if options.labels:
        content = read_given(options.labels)
        context.stage.inherit(options.labels, content)
        files = [chosen_from[index][0] for index in selection.bought.tolist()]
        given = read_labels(content, options.labels, files, context.source.classes)
        selection = _answered(selection, given, options.labels)
    if selection.facts["pool_digest"] != pool.digest:
        selection = in_present_pool(selection, chosen_from, pool, needed=options.use != "unlabelled")
    published = options.pseudo_labels == "published"  # the safe recipe reads the whole pool
    if published and options.use == "unlabelled" and not len(selection.unlabelled):
        raise UserError(f"--use unlabelled: --method {options.method} reads no unlabelled images; leave --use out")
    if options.use != "unlabelled" and bool((selection.labels == UNKNOWN).any()):
        raise UserError(no_labels_yet(path.parent / TABLE, len(selection.bought)))
    return selection


def no_labels_yet(table: Path, chosen: int) -> str:
    """Say how to go on without --labels: with the table of annotate itself, if somebody has filled it in."""
    given = count_labels(table.read_bytes(), table) if table.is_file() else 0
    if given >= chosen:
        return f"{table} holds {given} labels, and relearn reads them with: --labels {shlex.quote(str(table))}"
    page = table.with_name(PAGE)
    if given:
        return (
            f"{table} holds {given} labels of {chosen}: load it into {page} and go on, or fill in the rest, and give "
            "the table with --labels FILE"
        )
    return (
        f"nobody has given the labels yet: label the images in {page}, or fill in {table}, and give the table with "
        "--labels FILE"
    )


def _answered(selection: Selection, given: Tensor, origin: Path) -> Selection:
    """Return the selection with a person's labels, without the images that the person has passed over."""
    answered = selection.with_answers(given)
    skipped, lost = (len(getattr(selection, name)) - len(getattr(answered, name)) for name in ("bought", "members"))
    if skipped and not len(answered.bought):
        raise UserError(f"{origin}: all {skipped} images are skipped; label at least one of them")
    if skipped:
        sharing = f", and {lost - skipped} images that would have shared their labels" if lost > skipped else ""
        info(f"{skipped} of {len(given)} chosen images are skipped: left out of the repair{sharing}")
    return answered


def after_all_rounds(
    context: Context,
    model: Classifier,
    pool: Pool,
    first: Selection,
    repair: Callable[[Selection, int], nn.Module],
) -> Selection:
    """Return the selection after the rounds of --rounds or --step; `first` is that of the first round."""
    options = context.options
    budgets = round_budgets(affordable(options.budget, len(pool), "--budget"), options.rounds, options.step)
    if len(budgets) == 1:
        return first
    encoder = encoder_of(context, pool, model)

    def choose(network: nn.Module, selection: Selection, budget: int) -> Selection:
        found = selection_inputs(context, network, pool, encoder)
        chosen = choose_further(found, selection, budget, method=options.method, oracle=pool.truth)
        info(f"round {chosen.facts['rounds']} of {len(budgets)}: {len(chosen.bought)} labels bought")
        return chosen

    return in_rounds(first, budgets, repair, choose)


def safe_training(options: Any, pool: Pool) -> SafeTraining:
    """Return what the options tell the safe recipe, with a judge of pseudo-labels where the pool is simulated."""
    return SafeTraining(options.scope, not options.no_prior, options.trust_prior, judge=judge_of(pool))


def warm_starts(context: Context) -> ContentCache:
    """Return the cache of warm starts in relearn-start/, next to the folders of the stages."""
    return ContentCache(model_folder(context.options) / "relearn-start")


def inherit_warm_start(context: Context, model: Classifier, recipe: Recipe, settings: RepairSettings) -> None:
    """Record the cached warm start of a repair among what the run has read."""
    path = warm_starts(context).path(warm_start_facts(model, context.data.train, recipe, settings))
    context.stage.inherit(path, path.read_bytes())


def finished_runs(context: Context) -> pd.DataFrame:
    """Return the rows of all finished runs with this bias, split and limit, each with the wall time of its record.

    Runs from labels that have changed since are left out, which is logged. UserError when there is none.
    """
    options = context.options
    rows, same = [], ("bias", "split_digest", "limit")
    for path in sorted(model_folder(options).glob("relearn-*/row.csv")):
        record = recorded(path.parent / RECORD)
        if record and all(record["settings"].get(name, "") == getattr(options, name) for name in same):
            try:
                content = context.stage.read(path, record["command"])
                row = _only_row(content, path)
            except StaleArtifact as error:
                info(f"left out: {error}")
                continue
            rows.append({**row, "wall_seconds": record["wall_seconds"]})
    if not rows:
        command = context.command("relearn")
        raise UserError(f"nothing to compare under {model_folder(options)}; make a run with: {command}")
    return pd.DataFrame(rows)


def _only_row(content: bytes, path: Path) -> dict[str, Any]:
    try:
        (row,) = pd.read_csv(io.BytesIO(content)).to_dict("records")
    except ValueError as error:  # those of pandas are among them
        raise StaleArtifact(f"{path} does not hold one row") from error
    return {str(name): value for name, value in row.items()}


def recorded(path: Path) -> dict[str, Any] | None:
    """Return the record of a run, or None if it cannot be read because the run has not finished."""
    with contextlib.suppress(*DAMAGE):
        record = parse_json(path.read_bytes())
        return {
            "settings": dict(record["settings"]),
            "command": str(record["command"]),
            "wall_seconds": float(record["wall_seconds"]),
        }
    return None
