"""Equations: how the linear maps of a network get their weights from fewer numbers (docs/equations.md)."""
