"""Repair trained image classifiers: rank filters, patch them, and route each sample to the maps that serve it."""

__version__ = "0.1.0"
