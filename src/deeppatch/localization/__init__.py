"""Rank the filters of every convolution by how much they are to blame for failures on degraded data."""
