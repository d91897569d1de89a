"""The doors for your own programs: a Gallery, exact search and exact evaluation."""

from areir.evaluation.metrics import evaluate
from areir.evaluation.ranking import search

__all__ = ['evaluate', 'search']
