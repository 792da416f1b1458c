"""Scorers ŷ(x, support): class logits straight from the labelled items, with no weights of a task between."""
