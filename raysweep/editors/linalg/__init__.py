"""Linear algebra of the editors in float64: Cholesky factors, ridge regressions that grow, matrices in chunks of rows."""
