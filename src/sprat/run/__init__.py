"""Running a `.sprat`: tokenizer, text generation, export (knows nothing of calibration)."""
