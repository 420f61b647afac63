"""Structural pruning: a smaller ordinary model of the same family, compensated in closed form (docs/structure.md)."""
