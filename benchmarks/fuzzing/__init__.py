"""What :mod:`benchmarks.fuzz` is made of: sound files, damage, cases, and what becomes of them."""
