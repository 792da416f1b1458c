"""Meta-learning: fitting, testing and drawing guides over tasks."""
