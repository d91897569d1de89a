"""Exact retrieval on embeddings: search, metrics, intervals and thresholds."""

from areir.evaluation.metrics import evaluate
from areir.evaluation.ranking import search

__all__ = ['evaluate', 'search']
