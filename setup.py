"""Beside pyproject.toml: a wheel carries what the library reads of the project."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# what the library reads, and where it finds it in a wheel (nbs/engine/001_paths.ipynb)
FILES = (
    "settings.ini nbs/**/*.ipynb data/published/* data/splits/* "
    "data/contract.csv data/elsewhere.csv"
)
PLACE = "thesis_repro/project"


class WithProject(build_py):
    "Copy these files into the package; an editable install has them where they are."

    def run(self):
        super().run()
        here = Path(__file__).parent
        found = [f.relative_to(here) for pattern in FILES.split() for f in here.glob(pattern)]
        seen = [f for f in found if not any(part.startswith(".") for part in f.parts)]
        for file in [] if self.editable_mode else seen:
            target = Path(self.build_lib) / PLACE / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(here / file, target)


setup(cmdclass={"build_py": WithProject})
