"""Networks in stages, their weights, and what follows them: folding, projection."""
