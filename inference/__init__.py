"""Objectives, training, evaluation and the commands."""

import pyro

pyro.settings.set(module_local_params=True)  # parameters live in their modules; must precede the first PyroModule
