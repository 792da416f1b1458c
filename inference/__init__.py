"""Objectives, training, evaluation and the commands."""
