"""Predictions and what they are worth: scores, tables, pictures, ArviZ."""
