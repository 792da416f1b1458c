"""One-line mutations of what users read, and the tests that must notice them: ``python -m tests.mutations``."""
