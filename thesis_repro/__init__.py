"""A notebook-first reproduction of Adachi (2022).

Every other file of this folder is generated from the notebooks under nbs/.
"""

import os
import sys

__version__ = "0.2.0"

# Threads that wait for each other sleep instead of spinning. Where several runs share the cores,
# spinning makes a small network six times slower. It counts only where torch has not been imported
# yet; a value of the user's stays.
SPINNING = "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _keep_memory() -> None:
    """Ask glibc to keep what is freed.

    A training step takes the same blocks again, and the system would clear each page again.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return
    own = any(name.startswith("MALLOC_") for name in os.environ)  # a user's own choice stays
    if not own and os.environ.get("THESIS_REPRO_KEEP_MEMORY") != "0":
        # M_MMAP_MAX: no block of its own, which would go back to the system when it is freed
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: no memory back before 2 GiB of it lie idle


def __getattr__(name: str):
    "`thesis_repro.load_model`, whose imports take a second, comes when it is asked for."
    if name == "load_model":
        from .model_files import load_model

        return load_model
    raise AttributeError(f"module {__name__} has no attribute {name}")


_keep_memory()
