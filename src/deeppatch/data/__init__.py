"""Data sets on the device: sources, splits, degraded views and batch streams."""
