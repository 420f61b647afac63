"""The terms of the grammar, by name."""

from __future__ import annotations

from sprat.equations.term import Term
from sprat.equations.terms.coordinates import Coordinates, Hypernetwork
from sprat.equations.terms.depth import Mixture, Polynomial, Scaled, Shared
from sprat.equations.terms.kronecker import Kronecker
from sprat.equations.terms.lowrank import Dense, LowRank
from sprat.equations.terms.monarch import Monarch
from sprat.equations.terms.seeded import Seeded
from sprat.equations.terms.toeplitz import Circulant, Toeplitz

TERMS: dict[str, type[Term]] = {
    term.name: term
    for term in (
        Dense,
        LowRank,
        Kronecker,
        Monarch,
        Circulant,
        Toeplitz,
        Seeded,
        Coordinates,
        Hypernetwork,
        Shared,
        Scaled,
        Polynomial,
        Mixture,
    )
}
