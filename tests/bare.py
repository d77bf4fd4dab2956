"""The command line as on a machine that has torch and little else: `python tests/bare.py WORDS`.

What notebooks, AutoAttack and clusters need cannot be imported, and nothing is known of how the
package was installed: it runs from the source tree, found by PYTHONPATH alone.
"""

import sys
from importlib import metadata

MISSING = set(
    "jupyter jupyterlab jupyter_core jupyter_client papermill nbdev execnb nbclient nbformat "
    "nbconvert ipykernel IPython pyautoattack ray submitit".split()
)


class Hiding:
    "What finds modules, but for the missing ones."

    def __init__(self, real):
        self.real = real

    def find_spec(self, name, path=None, target=None):
        missing = name.partition(".")[0] in MISSING
        return None if missing else self.real.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.real, name)


class Unknown:
    "Knows no package of those names either."

    def __init__(self, real):
        self.real = real

    def __call__(self, name, *rest):
        if name.replace("-", "_") in MISSING | {"thesis_repro"}:
            raise metadata.PackageNotFoundError(name)
        return self.real(name, *rest)


if __name__ == "__main__":
    sys.meta_path[:] = map(Hiding, sys.meta_path)
    metadata.requires = Unknown(metadata.requires)
    metadata.version = Unknown(metadata.version)
    metadata.distribution = Unknown(metadata.distribution)
    from thesis_repro.cli import main

    sys.exit(main())
