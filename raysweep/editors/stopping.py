"""How often a loop of updates reads back from its device whether it may end.

A number that Python reads makes it wait until the device has computed it, and the device then waits for Python to ask for the next
step; a captured step could not be replayed at all. So a loop decides on the device what has stopped, lets what runs past a stop
change nothing, and reads every few steps. On the CPU, where reading costs nothing, it reads in every step and runs past nothing.
The results are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Loops have 10 to 70 steps and may end anywhere. Reading every n steps computes (n - 1) / 2 steps too many on average and leaves
# out all waits but one in n: four leaves out most of them for a step and a half.
STEPS_BETWEEN_READS = 4


def steps_between_reads(like: Tensor) -> int:
    """Return after how many steps of a loop on the device of *like* to look whether it may end."""
    return 1 if like.is_cpu else STEPS_BETWEEN_READS
