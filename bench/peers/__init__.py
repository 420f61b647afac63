"""The methods that sprat is measured beside, one file a peer.

A peer is a function from a weight matrix (and what it wants to know of the inputs) to a `Grouped`
(bench/packed.py). llamacpp.py is another kind: whole files and an engine of their own.
"""
