"""The version, by itself: what writes it into files needs nothing else of the front door."""

__version__ = "0.4.0"
