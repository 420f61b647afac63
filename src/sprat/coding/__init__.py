"""How bits lie: stored tensors, entropy coder, the `.sprat` container and its exact byte ledger."""
