"""The report of annotate: the selection, a table for the labels, a page of images, and facts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import count
from typing import Any

import pandas as pd
from PIL import Image

from deeppatch.cli.context import Context
from deeppatch.data.files import open_rgb
from deeppatch.data.label_file import FILE, LABEL, count_labels, table_to_bytes
from deeppatch.data.pool import Pool
from deeppatch.errors import UserError
from deeppatch.hybrid.consistency import uncertainty
from deeppatch.hybrid.diagnostics import PoolTruth
from deeppatch.hybrid.selection_inputs import SelectionInputs
from deeppatch.hybrid.selection_methods import Choice
from deeppatch.progress import info
from deeppatch.report.contact_sheet import Tile, contact_sheet
from deeppatch.report.labelling_page import Task, labelling_page

TABLE, PAGE = "selection.csv", "contact.html"
GUESSES = 3  # classes that the page to label on shows where a person asks what the network thinks


def check_no_labels_given(context: Context) -> None:
    """Raise UserError when the table of an earlier run has labels that a person gave, which would be overwritten."""
    path = context.stage.folder / TABLE
    if not context.options.bias and path.exists() and (given := count_labels(path.read_bytes(), path)):
        command = f"{context.command('relearn')} --labels {shlex.quote(str(path))}"
        raise UserError(f"{path} holds {given} labels; go on with: {command} (or move the file away to choose anew)")


def write_selection(
    context: Context, pool: Pool, inputs: SelectionInputs, choice: Choice, found: dict[str, Any]
) -> None:
    """Write selection.safetensors, selection.json, selection.csv and contact.html; `found` are further facts."""
    options, selection, source = context.options, choice.selection, context.source
    facts = {
        "method": options.method,
        "features": options.features,
        "views": options.views,
        "budget": options.budget,
        "bias": options.bias,
        "seed": options.seed,
        "classes": len(source.classes),
        "pool": len(pool),
        "pool_digest": pool.digest,
        **found,
    }
    uncertain = uncertainty(choice.predictions)
    files = {"files": pool.files} if pool.folder else {}
    context.stage.write("selection.safetensors", selection.to_bytes(**facts, **files))
    context.stage.write_json(
        "selection.json",
        {
            "dataset": source.name,
            "model": options.model,
            **facts,
            **selection.facts,
            "limit": options.limit,
            "members": len(selection.members),
            "unlabelled": len(selection.unlabelled),
            "mean_uncertainty_of_pool": round(uncertain.mean().item(), 6),
            "diagnostics": diagnostics(pool, inputs, choice),
        },
    )
    table = selection_table(pool, choice, uncertain[selection.bought].tolist(), source.classes)
    where = f" of {len(pool)} images in {pool.folder}" if pool.folder else f" of {len(pool)} images"
    of_data = "" if pool.folder else f" on {source.name}"
    lead = f"{len(table)}{where} chosen by {options.method} for {options.model}{of_data}."
    shown = tiles(pool, choice, table)
    if pool.folder:  # for a person to fill in
        command = f"{context.command('relearn')} --labels {TABLE}"
        task = Task(lead, table, source.classes, pool.digest, command)
        keep_earlier(context, task)
        context.stage.write(TABLE, table_to_bytes(table))
        context.stage.write(PAGE, labelling_page(task, shown, guesses(choice)))
    else:
        context.stage.write_table(TABLE, table)
        context.stage.write(PAGE, contact_sheet("Chosen images", lead, shown))


def keep_earlier(context: Context, task: Task) -> None:
    """Move what an earlier run has left aside where it asks for other labels: people may have labelled for it.

    The page tells, under whose digest a browser keeps labels.
    """
    folder = context.stage.folder
    page = folder / PAGE
    if not context.stage.writes or not folder.exists() or (page.exists() and task.digest.encode() in page.read_bytes()):
        return
    kept = next(
        path for number in count(1) if not (path := folder.with_name(f"{folder.name}-earlier{number}")).exists()
    )
    folder.rename(kept)
    selection = shlex.quote(str(kept / "selection.safetensors"))
    info(
        f"the images to label are others than before: the earlier choice is kept in {kept}; if it has been labelled, "
        f"relearn reads it with --selection {selection} --labels FILE"
    )


def guesses(choice: Choice) -> list[list[tuple[int, float]]]:
    """Return, for each chosen image, the likeliest classes by the network with their probabilities, the first first."""
    predictions = choice.predictions[choice.selection.bought]
    likely = predictions.topk(min(GUESSES, predictions.shape[1]), 1)
    pairs = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
    return [list(zip(*each, strict=True)) for each in pairs]


def selection_table(pool: Pool, choice: Choice, uncertain: list[float], classes: tuple[str, ...]) -> pd.DataFrame:
    """Return one row for each chosen image in the order of the choice; unknown labels are empty."""
    indices, labels = choice.selection.bought.tolist(), choice.selection.labels.tolist()
    return pd.DataFrame(
        {
            FILE if pool.folder else "index": [pool.names[index] for index in indices],
            "reason": choice.reasons,
            "cluster": [str(cluster) if cluster >= 0 else "" for cluster in choice.clusters.tolist()],
            "uncertainty": uncertain,
            LABEL: [classes[label] if label >= 0 else "" for label in labels],
        }
    )


def tiles(pool: Pool, choice: Choice, table: pd.DataFrame) -> Iterator[Tile]:
    """Yield the images of the table's rows with their captions, one after the other because files may be large."""
    for index, (name, reason, cluster, entropy, label) in zip(
        choice.selection.bought.tolist(), table.itertuples(index=False), strict=True
    ):
        image = (
            open_rgb(pool.folder / name)
            if pool.folder
            else Image.fromarray(pool.pixels[index].permute(1, 2, 0).cpu().numpy())
        )
        notes = [reason + (f" (cluster {cluster})" if cluster else ""), f"uncertainty {entropy:.2f}"]
        yield Tile(image, name, notes + [f"label {label}"] * bool(label))


def diagnostics(pool: Pool, inputs: SelectionInputs, choice: Choice) -> dict[str, Any] | None:
    """Return and log diagnostics from the true labels of a simulated pool; None for a real pool."""
    if pool.truth is None:
        return None
    truth = PoolTruth(pool.truth, inputs.embeddings.logits.argmax(1))
    percentages = truth.diagnostics(choice.selection, choice.predictions.argmax(1))
    for name, value in percentages.items():
        shown = "of none" if value is None else f"{value} %"
        info(f"diagnostic, unknown in the field: {name.replace('_', ' ').removesuffix(' percent')} {shown}")
    propagated, own = (
        percentages[f"{name}_percent"] for name in ("propagated_labels_correct", "own_predictions_correct_on_members")
    )
    if len(choice.selection.members) > len(choice.selection.bought) and propagated is not None and propagated < own:
        info("the propagated labels are wrong more often than the model's own predictions there")
    return {"note": "from the truth of the simulated pool, not available in the field", **percentages}
