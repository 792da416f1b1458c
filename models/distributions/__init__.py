"""Distributions of weights and layers, each with its KL divergences."""
