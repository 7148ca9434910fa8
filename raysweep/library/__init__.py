"""raysweep from Python: edit a model in hand, plan and run a sweep, read its results. The public names are in ``raysweep``."""
