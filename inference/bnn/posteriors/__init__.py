"""Posteriors over a network's weights that are not fitted by our objective: what stands beside it in a table."""
