"""How large an input may be. Each bound is checked before the work it bounds, and stands in the message that refuses.

The bounds are far above what an experiment needs and far below what makes a machine slow: no accepted file takes
more than seconds to read.
"""

from __future__ import annotations

LARGEST = 2**63 - 1  # a whole number; the results hold them as 64 bits with sign
SMALLEST = -(2**63)
THREADS = 1024  # of torch, per trial
SHARDS = 1024  # processes per trial
HUNG_AFTER = 10  # minutes without a sign of life, at least, before a trial may count as hung
FILE_BYTES = 512 << 10  # of a YAML file
DEPTH = 32  # of lists and mappings inside each other
NODES = 50_000  # of a YAML file, with every alias written out
POINTS = 20_000  # of a whole sweep: each becomes a trial
NAME_BYTES = 150  # of a sweep, an arm: the first is the name of a folder, of which file systems take 255
