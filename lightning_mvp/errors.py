"""Errors that a person can mend and no built-in class fits."""

from __future__ import annotations


class SelfCheckError(RuntimeError):
    """A zeroed and a physically cut backbone disagree, so pruning it would be silently wrong."""
