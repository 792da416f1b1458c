"""A student that explains labels and a teacher's layers."""
