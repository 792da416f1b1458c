"""The few-shot program: prior, predictor, labels of many tasks."""
