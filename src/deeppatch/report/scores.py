"""Tables of accuracies, of repair and break rates, of a router's decisions, and of a training."""

from __future__ import annotations

from typing import Any

import pandas as pd

from deeppatch.training import History


def table(networks: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Return one row for each network and one column for each view, in percent."""
    frame = pd.DataFrame.from_dict(networks, orient="index")
    return frame.rename_axis("network").reset_index()


def format_table(frame: pd.DataFrame) -> str:
    """Format a table for the terminal, numbers with two decimals."""
    return frame.to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep="-")


def with_changes(accuracy: pd.DataFrame, changed: dict[str, dict[str, dict[str, float]]]) -> pd.DataFrame:
    """Return accuracies, repair and break rates in one table, distinguished by the column `measure`."""
    frames = [accuracy.assign(measure="accuracy")]
    for measure in ("repair", "break"):
        frames.append(table({name: rates[measure] for name, rates in changed.items()}).assign(measure=measure))
    return pd.concat(frames, ignore_index=True)


def format_changes(changed: dict[str, dict[str, dict[str, float]]]) -> str:
    """Format repair and break rates as one cell per view: `+repair -break`."""
    cells = {
        name: {view: f"+{rates['repair'][view]:.1f} -{rates['break'][view]:.1f}" for view in rates["repair"]}
        for name, rates in changed.items()
    }
    frame = pd.DataFrame.from_dict(cells, orient="index").rename_axis("network").reset_index()
    return frame.to_string(index=False)


def routing_table(router: dict[str, Any]) -> pd.DataFrame:
    """Return one row per view: AUROC against clean, and the share of samples routed wrongly, in percent."""
    rows = [{"view": "clean", "auroc": float("nan"), "routed_wrongly_percent": router["false_switch_percent"]}]
    for view, missed in router["missed_switch_percent"].items():
        rows.append({"view": view, "auroc": router["auroc"][view], "routed_wrongly_percent": missed})
    return pd.DataFrame(rows)


def training_table(history: History) -> pd.DataFrame:
    """Return one row per epoch: epoch from 1, loss, validation accuracy in percent, whether it is the best."""
    epochs = range(1, len(history.loss) + 1)
    return pd.DataFrame(
        {
            "epoch": epochs,
            "loss": history.loss,
            "val_accuracy_percent": [100 * value for value in history.accuracy],
            "best": [epoch - 1 == history.best for epoch in epochs],
        }
    )
