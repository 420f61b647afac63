"""Golf: train the best language model from nothing that fits a cap in bytes (docs/golf.md)."""
