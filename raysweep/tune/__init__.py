"""The Ray shell: the only place that imports Ray."""
