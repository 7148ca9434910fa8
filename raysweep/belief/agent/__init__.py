"""The exact Bayesian agent that a model's beliefs are judged against."""
