"""Ordinary networks: backbones, classifiers, features, and hooks into their layers."""
