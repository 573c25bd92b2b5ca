"""A network as one graph: find, hook and swap its modules, trace it, fold it, cut it."""
