"""Runs that torchrun starts as several processes: joining them, what they exchange, and training together."""
