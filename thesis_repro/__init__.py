"""A notebook-first reproduction of Adachi (2022). Every other file of this folder is generated from the notebooks under nbs/."""

import os

__version__ = "0.1.0"

# Threads that wait for each other sleep instead of spinning. Where several runs share the cores, spinning makes a
# small network six times slower. It counts only where torch has not been imported yet; a value of the user's stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
