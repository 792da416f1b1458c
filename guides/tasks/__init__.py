"""Guides over the weights of tasks, unrolled from a start."""
