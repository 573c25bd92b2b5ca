"""The report of export: the agreement of each exported model with the switched model."""

from __future__ import annotations

from deeppatch.cli.context import Context
from deeppatch.patching.export import Agreement
from deeppatch.progress import info


def write_report(context: Context, agreements: dict[str, dict[str, Agreement]], versions: dict[str, str]) -> None:
    """Write metrics.json and the record, and log how far each exported model agrees with the switched model."""
    facts_by_view = {
        view: {name: agreement.facts() for name, agreement in exported.items()} for view, exported in agreements.items()
    }
    for view, exported in facts_by_view.items():
        for name, facts in exported.items():
            same = f"same class {facts['argmax_agreement_percent']:.2f} %"
            logits = f"logits differ by at most {facts['max_logit_difference']:.1e} (largest {facts['max_logit']:.1f})"
            routed = f"{facts['images_routed_differently']} of {facts['images']} images routed differently"
            info(f"{view}: {name}: {same}, {logits}, {routed}, {facts['images_switched']} switched")
    context.stage.write_json(
        "metrics.json",
        {
            "router": context.options.router,
            "test_images": len(context.data.test),
            "limit": context.options.limit,
            "against_switched_model": facts_by_view,
            "versions": versions,
        },
    )
    context.stage.finish()
    info(f"written to {context.stage.folder}")
