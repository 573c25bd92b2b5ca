"""Data sets: sources, splits, corruptions, views and batches."""
