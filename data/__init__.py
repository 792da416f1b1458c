"""Data sets and the episode sampler; imports nothing else of Sibyl."""
