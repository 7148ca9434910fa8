"""Evaluation points: what is asked of a model before and after a revision, and what a rational agent would answer."""
