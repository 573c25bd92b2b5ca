"""The inputs of modularize: the settings of the search."""

from __future__ import annotations

from deeppatch.cli.context import Context
from deeppatch.modular.genetic_search import GeneticSearch
from deeppatch.modular.gradient_search import GradientSearch


def settings_of(context: Context) -> GradientSearch | GeneticSearch:
    """Return the settings of the search that --method names; options that are not given have their defaults."""
    options = context.options
    if options.method == "ga":
        drop, share = options.sensitive
        images = {"images": options.search_images} if options.search_images else {}
        return GeneticSearch(
            preset=options.preset,
            generations=options.budget,
            patience=options.patience,
            drop=drop,
            share=share,
            start=options.start,
            **images,
        )
    epochs = {"epochs": options.budget} if options.budget else {}
    return GradientSearch(
        lr=options.lr,
        alpha=options.alpha,
        shared=options.shared,
        max_drop=options.max_drop,
        head=not options.no_head,
        scaled=options.scale_scores,
        images=options.search_images,
        start=options.start,
        fresh_optimizer=options.preset == "published",
        **epochs,
    )
