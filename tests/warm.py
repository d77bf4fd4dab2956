"""What every child of a test would do again, done once by the server that they are forked from:
what the first step of an optimiser imports takes two seconds, for instance."""

import torch._dynamo
from gan import GANS, two
from methods import Weighed, small

from thesis_repro import aip, m2at, records, zoo

for run in (small(), small(Weighed()), *map(two, GANS)):
    run.data.images()
    run.code()
records.environment()
__all__ = ["aip", "m2at", "torch", "zoo"]
