"""The console commands: ``sibyl-sib``, ``sibyl-bnn``, ``sibyl-vid``, ``sibyl-predict`` and ``sibyl-diagnose``.

Each is ``python -m inference.<module>`` under a name that needs no checkout; a command loads its own module alone.
"""

from __future__ import annotations

from importlib import import_module

from inference.runs.commands import run_process


def sib() -> None:
    """``sibyl-sib``: few-shot learning by synthetic gradients."""
    run_process(import_module("sibyl.inference.svi_sib").main)


def bnn() -> None:
    """``sibyl-bnn``: Bayesian neural networks by rate and distortion."""
    run_process(import_module("sibyl.inference.svi_bnn").main)


def vid() -> None:
    """``sibyl-vid``: variational information distillation."""
    run_process(import_module("sibyl.inference.svi_vid").main)


def predict() -> None:
    """``sibyl-predict``: a finished run on other tasks."""
    run_process(import_module("sibyl.inference.predict").main)


def diagnose() -> None:
    """``sibyl-diagnose``: is a finished run's posterior right?"""
    run_process(import_module("sibyl.inference.diagnose").main)
