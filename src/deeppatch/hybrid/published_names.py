"""What HybridRepair's authors call methods and models, and what these are called here; importing it costs nothing."""

from __future__ import annotations

from deeppatch.hybrid.names import BIASES, METHODS, PRIOR

METHODS_HERE = {
    "tta": "hybrid", "sslconsistency": "ssl-consistency", "sslconsistency-imp": "ssl-consistency-imp",
    "sslrandom": "ssl-random",
}  # fmt: skip


def method_here(name: str) -> str:
    """Return the name of a selection method here; a name that there is not is returned as it is.

    >>> method_here("SSLConsistency-Imp"), method_here("MCP"), method_here("TTA")
    ('ssl-consistency-imp', 'mcp', 'hybrid')
    """
    small = METHODS_HERE.get(name.lower(), name.lower())
    return small if small in (*METHODS, PRIOR) else name


def bias_here(name: str) -> str:
    """Return the letter of a biased split; the authors number the models 0, 1 and 2.

    >>> bias_here("1"), bias_here("b")
    ('B', 'B')
    """
    numbered = dict(zip("012", BIASES, strict=True))
    return numbered.get(name, name.upper() if name.upper() in BIASES else name)
