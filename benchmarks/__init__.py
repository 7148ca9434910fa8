"""Measurements: how long things take here, beside a plain implementation of the same algorithms."""
