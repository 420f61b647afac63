"""Accuracy of two models on the same questions: local files and lm-evaluation-harness, with the flips."""
