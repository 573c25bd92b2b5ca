"""Decomposing the Deep: the last-layer features that carry each class's decision, and a head that reads only those."""
