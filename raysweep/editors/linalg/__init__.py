"""Least squares in float64, as the editors need it."""
