"Processes that tests start, and wait for."

import multiprocessing
import time
from pathlib import Path

# a kill costs no start of Python: children are forked from a server that has imported everything
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["thesis_repro.cli", "sklearn.datasets", "warm"])


def child(target, *args) -> int:
    "The exit code of a process that calls target(*args); the negative signal if one killed it."
    process = FORK.Process(target=target, args=args)
    process.start()
    process.join(300)
    return process.exitcode


def gone(pid: int, seconds: float = 10) -> bool:
    "Whether a process ends within that time (a zombie has ended)."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False
