"""Write and read the rankings that assess makes for correct."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from deeppatch.artifacts import state_digest
from deeppatch.cli.context import Context
from deeppatch.cli.predecessors import given_or_read
from deeppatch.errors import StaleArtifact
from deeppatch.graph.hooks import convolutions
from deeppatch.localization.ranking import Ranking
from deeppatch.progress import info
from deeppatch.storage import parse_json
from deeppatch.zoo.classifier import Classifier


def write_ranking(context: Context, model: Classifier, ranking: Ranking, facts: dict[str, object]) -> None:
    """Write the ranking as JSON, for correct, and as a table."""
    base = state_digest(model.state_dict())
    content = {"base": base, "limit": context.options.limit, **facts, **ranking.to_json()}
    context.stage.write("ranking.json", (json.dumps(content) + "\n").encode())
    rows = [
        {"layer": name, "rank": index + 1, "channel": channel, "score": ranking.scores[name][channel]}
        for name, order in ranking.order.items()
        for index, channel in enumerate(order)
    ]
    context.stage.write_table("ranking.csv", pd.DataFrame(rows))


def load_ranking(context: Context, model: Classifier) -> tuple[Ranking, float | None]:
    """Return the ranking to use, checked against the network, and the estimated ratio of -f ratioestim or None."""
    found = context.found["ranking"]
    path, command = found.path, found.command
    content = given_or_read(context, found)
    try:
        parsed = parse_json(content)
        ranking, estimated = Ranking.from_json(parsed), parsed.get("ratio")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StaleArtifact(f"{path} is no ranking; make one with: {command}") from error
    if parsed.get("base") != state_digest(model.state_dict()):
        raise StaleArtifact(f"{path} ranks the filters of other weights; make it again with: {command}")
    if estimated is not None and not (isinstance(estimated, float) and 0 < estimated <= 1):
        raise StaleArtifact(f"{path}: {estimated!r} is no ratio; make it again with: {command}")
    _check_fits(ranking, model, path)
    info(f"inherited {path} ({ranking.method}, {len(ranking.order)} layers)")
    return ranking, estimated


def _check_fits(ranking: Ranking, model: Classifier, path: Path) -> None:
    """Raise StaleArtifact unless every layer's order is a permutation of that layer's channels."""
    widths = {name: conv.out_channels for name, conv in convolutions(model.network).items()}
    for name, order in ranking.order.items():
        whole = isinstance(order, list) and all(type(channel) is int for channel in order)
        if not whole or sorted(order) != list(range(widths.get(name, 0))):
            raise StaleArtifact(f"{path}: layer {name} does not fit the network; rank its filters again")
