"""The console commands: ``sibyl-sib``, ``sibyl-bnn``, ``sibyl-vid``, ``sibyl-meta``, ``sibyl-predict`` and ``sibyl-diagnose``.

Each is ``python -m inference.<module>`` under a name that needs no checkout; a command loads its own module alone.
"""

from __future__ import annotations

from importlib import import_module

from inference.runs.beginning import begin


def run(command: str) -> None:
    """Run a ``command``, a module below ``inference``, and end the process."""
    begin()
    import_module("sibyl.inference.runs.commands").run_process(import_module(f"sibyl.inference.{command}").main)


def sib() -> None:
    """``sibyl-sib``: few-shot learning by synthetic gradients."""
    run("svi_sib")


def bnn() -> None:
    """``sibyl-bnn``: Bayesian neural networks by rate and distortion."""
    run("svi_bnn")


def vid() -> None:
    """``sibyl-vid``: variational information distillation."""
    run("svi_vid")


def meta() -> None:
    """``sibyl-meta``: meta-learners side by side."""
    run("svi_meta")


def predict() -> None:
    """``sibyl-predict``: a finished run on other tasks."""
    run("predict")


def diagnose() -> None:
    """``sibyl-diagnose``: is a finished run's posterior right?"""
    run("diagnose")
