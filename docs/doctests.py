"""Let the site show the examples of docstrings as examples: mkdocs.yml names this extension of griffe."""

from __future__ import annotations

import re
from typing import Any

import griffe

# lines from one with a prompt to the next empty one, and the heading before them, if there is one
EXAMPLE = re.compile(r"^(?:Examples?:\n)?(?P<lines> *>>> .*(?:\n(?! *$).*)*)", re.MULTILINE)


def with_examples(text: str) -> str:
    """Return a docstring with each example under the heading that griffe knows."""

    def under_heading(match: re.Match[str]) -> str:
        lines = match["lines"] if match["lines"].startswith(" ") else re.sub("^", "    ", match["lines"], flags=re.M)
        return f"Examples:\n{lines}"

    return EXAMPLE.sub(under_heading, text)


class Doctests(griffe.Extension):
    """Give every docstring with an example the heading of an example."""

    def on_object(self, *, obj: griffe.Object, **_further: Any) -> None:
        """Change the docstring of an object that griffe has read."""
        if obj.docstring is not None:
            obj.docstring.value = with_examples(obj.docstring.value)
