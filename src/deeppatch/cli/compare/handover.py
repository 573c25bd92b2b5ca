"""What compare hands over: the page, the model card, and values for a sink."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from deeppatch.cli.context import Context
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import CLEAN
from deeppatch.ledger.requirements import Judgement
from deeppatch.progress import measured
from deeppatch.report.model_card import model_card
from deeppatch.report.page import CARD, PAGE, page
from deeppatch.report.pictures import pictures_of
from deeppatch.report.verdict import Verdict

# further tables that the stage may have written, with their heading and a sentence
FURTHER = {
    "adaptation.csv": (
        "Adapting at test time instead",
        "Methods that adapt to the images as they come, and the networks above, on the same streams; accuracies in "
        "percent. The difference is to the base, in points, with the ends of its 95 % interval. `clean` is the "
        "accuracy on clean images afterwards; `forward` and `train` are passes of one image for each answer; "
        "`neighbours` and `past` say whether an answer depends on other images of its batch, and on earlier ones.",
    ),
    "attack.csv": (
        "Attacks",
        "PGD on clean test images, within an L-infinity ball of radius epsilon: robust accuracy and attack success "
        "rates.",
    ),
}


def hand_over(
    context: Context,
    ledger: Ledger,
    tidy: pd.DataFrame,
    said: tuple[str, Verdict],
    *,
    judgements: Sequence[Judgement] = (),
    chosen_here: bool = False,
) -> None:
    """Write report.html and model-card.md, and send the accuracies and changes of all networks to the sink, if any.

    Args:
        context: The run.
        ledger: The ledger.
        tidy: Its tidy table.
        said: The network that the verdict is about, and the verdict.
        judgements: Whether requirements are met.
        chosen_here: Whether that network was chosen by the ledger.
    """
    options, stage = context.options, context.stage
    test = context.data.test
    left_out = np.setdiff1d(np.arange(len(test)), ledger.view(CLEAN).image)
    if len(left_out):
        notes = [f"{len(left_out)} test images that routers were calibrated on are left out of every row."]
        ledger = dataclasses.replace(ledger, about={**ledger.about, "notes": notes})
    pictures = pictures_of(
        test, context.corruption, context.held_out, batch_size=options.batch_size, seed=options.seed, left_out=left_out
    )
    html = page(
        ledger, tidy, target=said[0], judgements=judgements, pictures=pictures, seed=options.seed,
        chosen_here=chosen_here,
        further={heading: (sentence, _read(context, name))
                 for name, (heading, sentence) in FURTHER.items() if name in stage.outputs},
    )  # fmt: skip
    stage.write(PAGE, html.encode())
    stage.write(CARD, model_card(ledger, tidy, *said, chosen_here=chosen_here).encode())
    means = tidy[(tidy.severity == 0) & tidy.measure.isin(["accuracy", "change"])]
    values = {f"{row['network']} {row['measure']} {row['view']}": float(row["estimate"])
              for row in means.to_dict("records")}  # fmt: skip
    measured("compare", 0, **values)


def _read(context: Context, name: str) -> pd.DataFrame:
    """Return a table that this run has written; methods on streams become one column, which names the rows."""
    frame = pd.read_csv(context.stage.unfinished / name)
    if {"method", "stream"} <= set(frame.columns):
        frame["method"] = frame["method"] + ", " + frame.pop("stream")
    return frame
