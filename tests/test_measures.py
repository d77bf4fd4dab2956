"""What can be measured of a run is known before anything is trained, where its images are."""

import dataclasses

import pytest

from thesis_repro.files import BadInput
from thesis_repro.measures import Recorded, check_fit
from thesis_repro.mixup import Plain
from thesis_repro.recipes import Classify
from thesis_repro.runs import Named, Run
from thesis_repro.training import Length


def test_what_does_not_fit_is_refused_where_the_images_are_there(tmp_path):
    class Never(Recorded):
        def fits(self, run):
            raise BadInput("too few")

    here = Run(Named("digits10", 40, 20, 20), Classify("resnet18", Plain()), Length(1, 20))
    absent = dataclasses.replace(here, data=Named(f"npz:{tmp_path / 'none.npz'}@0123456789ab"))
    with pytest.raises(BadInput, match="too few"):
        check_fit(Never("last.accuracy"), here)
    check_fit(Never("last.accuracy"), absent)  # a table is drawn of its records all the same
