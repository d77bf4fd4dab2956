"Processes that tests start, and wait for."

import time
from pathlib import Path


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
