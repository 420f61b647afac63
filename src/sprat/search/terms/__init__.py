"""The terms of the grammar, by name."""

from __future__ import annotations

from sprat.search.equation import Term
from sprat.search.terms.coordinates import Coordinates, Hypernetwork
from sprat.search.terms.depth import Mixture, Polynomial, Scaled, Shared
from sprat.search.terms.kronecker import Kronecker
from sprat.search.terms.lowrank import Dense, LowRank
from sprat.search.terms.monarch import Monarch
from sprat.search.terms.seeded import Seeded
from sprat.search.terms.toeplitz import Circulant, Toeplitz

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
