"""Exact retrieval on embeddings, for your own programs: search and metrics."""

from areir.evaluation.metrics import evaluate
from areir.evaluation.ranking import search

__all__ = ['evaluate', 'search']
