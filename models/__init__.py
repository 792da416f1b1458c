"""Generative models: priors, predictors, likelihoods, feature networks."""
