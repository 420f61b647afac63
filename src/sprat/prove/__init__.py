"""What a compressed model lost, measured beside the original on the same text (knows nothing of methods)."""
