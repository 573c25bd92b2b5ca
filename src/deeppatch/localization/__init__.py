"""Rank the filters of every convolution by how far they cause failures on degraded images."""
