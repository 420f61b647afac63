"""Golf: train the best language model from nothing that fits a cap in bytes (docs/golf.md)."""

#: model_type of a network of golf's building blocks (golf/pretrained.py), which transformers does not know by itself.
MODEL_TYPE = "sprat_golf"
