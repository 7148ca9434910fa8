"""Language models: loading, layouts, ids, instruments, patches."""
