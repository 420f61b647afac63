"""Sense: one pass over calibration text that says what each weight matters."""
