"""Modules that stand in for a model's own."""
