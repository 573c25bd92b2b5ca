"""The page to hand over: a ledger as one self-contained HTML file, which opens from disk and prints well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

import deeppatch
from deeppatch import metrics
from deeppatch.ledger import pools
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import CLEAN
from deeppatch.ledger.requirements import Judgement
from deeppatch.report import page_tables
from deeppatch.report.charts import charts_of
from deeppatch.report.judging import judge_network, judged_network
from deeppatch.report.limits import limits
from deeppatch.report.model_card import model_card
from deeppatch.report.page_tables import Numbers
from deeppatch.report.pictures import Example, Pictures, as_data_urls, examples
from deeppatch.report.routing_shares import routing_shares
from deeppatch.storage import write_bytes

PAGE, CARD = "report.html", "model-card.md"
MOST_LINES = 8  # networks in a chart
MOST_MAPS = 6  # heat maps beside that of the judged network
SHOWN = 10  # repaired images, and as many newly wrong ones


@dataclass(frozen=True)
class Figure:
    """An image with what both networks answer; `source` is a data URL."""

    source: str
    example: Example


def page(
    ledger: Ledger,
    tidy: pd.DataFrame | None = None,
    *,
    target: str | None = None,
    judgements: Sequence[Judgement] = (),
    pictures: Pictures | Mapping[str, Tensor | np.ndarray] | None = None,
    seed: int = 2021,
    chosen_here: bool | None = None,
    further: Mapping[str, tuple[str, pd.DataFrame]] | None = None,
) -> str:
    """Return a ledger as one HTML page with all that belongs to it inside, for people who have no Python.

    It has a verdict, accuracies with intervals, charts, what the router does, images that the repair changes the answer
    for, cost, how everything was made, and limits. What comes from users, such as names of classes and files, is
    escaped.

    Args:
        ledger: What `deeppatch.compare` returns.
        tidy: The ledger's tidy table, where it is at hand (default: `ledger.frame()`).
        target: The network that the verdict is about (default: the one that gains most).
        judgements: Whether requirements are met, which are listed below the verdict.
        pictures: What `pictures_of` returns, or pixels of whole views, uint8 (N, 3, H, W), by name; without them no
            images are shown.
        seed: The seed by which the images to show are drawn.
        chosen_here: Whether the target was chosen by this very ledger, which limits mention (default: where none is
            given).
        further: Further tables by their heading, each with a sentence on it; their first column names the rows.

    Raises:
        UserError: When there is no network beside the base, or none is called `target`.
    """
    tidy = ledger.frame() if tidy is None else tidy
    numbers = page_tables.numbers_of(tidy)
    chosen = judged_network(ledger, tidy, target)
    said = judge_network(tidy, chosen, ledger.base)
    others = [name for name in ledger.networks if name not in (chosen, ledger.base)]
    maps = [page_tables.heat_map(ledger, numbers, name) for name in [chosen, *others[:MOST_MAPS]]]
    drawn = drawn_networks(ledger, numbers, chosen)
    accuracy = {key[:3]: value for key, value in numbers.items() if key[3] == "accuracy"}
    content = {
        "title": f"Repair of {ledger.about.get('model', ledger.base)}"
        + (f" on {ledger.about['dataset']}" if "dataset" in ledger.about else ""),
        "version": deeppatch.__version__,
        "ledger": ledger,
        "date": ledger.about.get("date"),
        "target": chosen,
        "verdict": said,
        "remark": ledger.networks[chosen].facts.get("remark"),
        "intervals": (metrics.OF_CHANGES, metrics.OF_OTHERS),
        "images": len(ledger.view(CLEAN)),
        "judgements": [(str(each.requirement), str(each).partition(": ")[2], each.met) for each in judgements],
        "accuracies": page_tables.accuracies(ledger, numbers),
        "measures": page_tables.further_measures(ledger, numbers),
        "charts": charts_of(ledger, accuracy, drawn),
        "drawn": drawn,
        "maps": [each for each in maps if each is not None],
        "routing": routing_shares(ledger),
        "repaired": figures(ledger, chosen, pictures, repaired=True, seed=seed),
        "broken": figures(ledger, chosen, pictures, repaired=False, seed=seed),
        "further": [
            (heading, sentence, page_tables.of_frame(frame)) for heading, (sentence, frame) in (further or {}).items()
        ],
        "costs": page_tables.costs(ledger),
        "about": page_tables.facts(ledger.about),
        "made": {name: page_tables.facts({"digest": row.digest, **row.facts}) for name, row in ledger.networks.items()},
        "limits": limits(ledger, chosen, chosen_here=target is None if chosen_here is None else chosen_here),
    }
    return environment().get_template("report.html").render(**content)


def write_report(
    ledger: Ledger,
    folder: Path | str,
    *,
    target: str | None = None,
    pictures: Pictures | Mapping[str, Tensor | np.ndarray] | None = None,
    seed: int = 2021,
) -> tuple[Path, Path]:
    """Write the page and the model card into a folder, and return their paths: report.html and model-card.md.

    The arguments are those of `page`.

    Raises:
        UserError: When there is no network beside the base, or none is called `target`.
    """
    tidy, folder = ledger.frame(), Path(folder)
    chosen = judged_network(ledger, tidy, target)
    html = page(ledger, tidy, target=target, pictures=pictures, seed=seed)
    card = model_card(ledger, tidy, chosen, judge_network(tidy, chosen, ledger.base), chosen_here=target is None)
    write_bytes(folder / PAGE, html.encode())
    write_bytes(folder / CARD, card.encode())
    return folder / PAGE, folder / CARD


def drawn_networks(ledger: Ledger, numbers: Numbers, target: str) -> list[str]:
    """Return which networks charts show: the base, the judged one, and those that gain most, up to MOST_LINES."""
    others = [name for name in ledger.networks if name not in (ledger.base, target)]
    view = pools.DEGRADED if any(key[1] == pools.DEGRADED for key in numbers) else CLEAN

    def gained(name: str) -> float:
        return numbers.get((name, view, 0, "change"), (float("-inf"),) * 3)[0]

    kept = sorted(others, key=gained, reverse=True)[: MOST_LINES - 2]
    return [ledger.base, target, *(name for name in others if name in kept)]


def figures(
    ledger: Ledger,
    network: str,
    pictures: Pictures | Mapping[str, Tensor | np.ndarray] | None,
    *,
    repaired: bool,
    seed: int,
) -> list[Figure]:
    """Return images that a network repairs, or breaks, with what base and network answer."""
    if pictures is None:
        return []
    found = examples(ledger, network, repaired=repaired, count=SHOWN, seed=seed)
    sources: dict[tuple[str, int], str] = {}
    for name in dict.fromkeys(each.view for each in found):
        rows = [each.row for each in found if each.view == name]
        pixels = pictures[name][rows] if isinstance(pictures, Mapping) else pictures(name, rows)
        sources |= {(name, row): url for row, url in zip(rows, as_data_urls(pixels), strict=True)}
    return [Figure(sources[each.view, each.row], each) for each in found]


def environment() -> Environment:
    """Return the templates; everything that they print is escaped."""
    return Environment(
        loader=PackageLoader("deeppatch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
