"""β-BNN: Bayesian neural networks by rate and distortion."""
