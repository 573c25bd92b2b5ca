"""What compare hands over: the page, the model card, and values for a sink."""

from __future__ import annotations

import dataclasses
import math
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

ADAPTATION, ATTACK = "adaptation.csv", "attack.csv"
OF_STREAM = (
    "All rows answer the same degraded images in the same order; accuracy in percent of these answers, and the points "
    "gained over {reference}, with 95 % intervals over images: of accuracies from a bootstrap that draws images with "
    "all their versions, of what is gained in closed form for paired answers. Passes are those of one image for each "
    "answer, without and with a backward pass."
)
OF_ATTACKS = (
    "PGD on clean test images, within L-infinity balls of radius epsilon (a change of each pixel in [0, 1]); a routed "
    "network is attacked along each of its paths and as a whole."
)


def hand_over(
    context: Context,
    ledger: Ledger,
    tidy: pd.DataFrame,
    said: tuple[str, Verdict],
    *,
    judgements: Sequence[Judgement] = (),
    chosen_here: bool = False,
    notes: Sequence[str] = (),
) -> None:
    """Write report.html and model-card.md, and send the accuracies and changes of all networks to the sink, if any.

    Args:
        context: The run.
        ledger: The ledger.
        tidy: Its tidy table.
        said: The network that the verdict is about, and the verdict.
        judgements: Whether requirements are met.
        chosen_here: Whether that network was chosen by the ledger.
        notes: Sentences that stand among the limits, such as which baselines are missing.
    """
    options, stage = context.options, context.stage
    test = context.data.test
    left_out = np.setdiff1d(np.arange(len(test)), ledger.view(CLEAN).image)
    told = [f"{len(left_out)} test images that routers were calibrated on are left out of every row."]
    told = [*(told if len(left_out) else []), *notes]
    ledger = dataclasses.replace(ledger, about={**ledger.about, "notes": told}) if told else ledger
    pictures = pictures_of(
        test, context.corruption, context.held_out, batch_size=options.batch_size, seed=options.seed, left_out=left_out
    )
    html = page(
        ledger,
        tidy,
        target=said[0],
        judgements=judgements,
        pictures=pictures,
        seed=options.seed,
        chosen_here=chosen_here,
        further=_further(context),
    )
    stage.write(PAGE, html.encode())
    stage.write(CARD, model_card(ledger, tidy, *said, chosen_here=chosen_here).encode())
    means = tidy[(tidy.severity == 0) & tidy.measure.isin(["accuracy", "change"])]
    values = {
        f"{row['network']} {row['measure']} {row['view']}": float(row["estimate"]) for row in means.to_dict("records")
    }
    measured("compare", 0, **values)


def _further(context: Context) -> dict[str, tuple[str, pd.DataFrame]]:
    """Return the tables on adaptation and attacks that this run has written, by heading, each with a sentence."""
    found = {}
    if ADAPTATION in context.stage.outputs:
        table = pd.read_csv(context.stage.unfinished / ADAPTATION)
        for name, own in table.groupby("stream", sort=False):
            reference = str(own["reference"].iloc[0])
            shown = of_stream(own, reference)
            found[f"Adapting at test time instead: the stream {name}"] = (OF_STREAM.format(reference=reference), shown)
    if ATTACK in context.stage.outputs:
        table = pd.read_csv(context.stage.unfinished / ATTACK)
        found["Attacks"] = (OF_ATTACKS, table.assign(epsilon=table["epsilon"].map("{:.4f}".format)))
    return found


def of_stream(own: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return the rows of adaptation.csv for one stream, each estimate with its interval as text."""

    def text(estimate: float, low: float, high: float) -> str:
        return "-" if math.isnan(estimate) else f"{estimate:.2f} ({low:.2f} to {high:.2f})"

    gained = ["difference", "difference_low", "difference_high"]
    return pd.DataFrame(
        {
            "network or method": own["row"],
            "accuracy": [text(*row) for row in own[["accuracy", "low", "high"]].to_numpy(float)],
            f"gained over {reference}": [text(*row) for row in own[gained].to_numpy(float)],
            "on clean images afterwards": own["clean"],
            "forward passes": own["forward"],
            "training passes": own["train"],
            "resets": ["-" if math.isnan(each) else f"{each:.0f}" for each in own["resets"].astype(float)],
            "depends on its batch": own["neighbours"],
            "depends on earlier batches": own["past"],
        }
    )
