"""What steps, evaluation and memory cost, beside other authors' code: the cases of ``python -m benchmarks``."""
