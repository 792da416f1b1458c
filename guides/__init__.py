"""Variational families: synthetic-gradient unrolling, its initialisations and gradient networks."""
