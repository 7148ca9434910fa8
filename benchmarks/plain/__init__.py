"""The editors written the plain way: what the fast ones are measured against.

The same algorithms and the same numbers (``tests/golden/test_plain.py``), without any of the savings: each step of an
optimisation runs the whole model and takes the logits of every position, SimIE solves with ``d_out`` right-hand sides, and
questions are asked one at a time. Only the rules about tokens and the configuration classes are shared with
:mod:`raysweep`. Precision is the model's own; use fp32.
"""
