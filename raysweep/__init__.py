"""raysweep: lifelong knowledge-editing experiments as a Ray Tune sweep."""

__version__ = "0.1.0"
