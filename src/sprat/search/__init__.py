"""The search for equations, and what a network of any shape takes that has one (docs/equations.md)."""
