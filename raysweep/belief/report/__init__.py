"""What a belief sweep comes to: metrics, tables, and files that the published notebook reads."""
