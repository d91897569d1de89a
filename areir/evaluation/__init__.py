"""Exact retrieval: scores, search, metrics, intervals, and files of embeddings."""
