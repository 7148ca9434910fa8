"""Results: Arrow schemas, the store, tables and views. Neither Ray nor torch is needed to read."""
