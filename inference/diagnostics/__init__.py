"""Measures of information and of how right a posterior is."""
