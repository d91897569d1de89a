"""Exact retrieval on embeddings: search, metrics, intervals and thresholds."""

from areir.retrieval.metrics import evaluate
from areir.retrieval.ranking import search

__all__ = ['evaluate', 'search']
