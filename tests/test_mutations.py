"What tests/mutations.json says of faults that were made on purpose."

import json

import mutations


def test_what_survived_is_listed_with_its_reason():
    told = json.loads(mutations.NOTED.read_text("utf-8"))
    survived = {fault for found in told.values() for fault in found["survive"]}
    assert told and survived <= mutations.allowed().keys()
    assert told.keys() <= mutations.TESTS.keys()


def test_a_module_is_tried_again_when_it_its_tests_or_its_faults_change(tmp_path, monkeypatch):
    monkeypatch.setattr(mutations, "NOTED", tmp_path / "mutations.json")
    found = {str(f): True for f in mutations.faults("draws")}
    survivor = next(iter(found))
    mutations.note("draws", found | {survivor: False})
    assert mutations.judged("draws", "", 1) == found | {survivor: False}  # without a try
    assert mutations.judged("draws", "no such word", 1) == {}
    for name in ("mark", "faults"):
        with monkeypatch.context() as changed:
            changed.setattr(mutations, name, lambda module: "")
            assert mutations.noted("draws") is None
    assert [m for m in mutations.TESTS if mutations.noted(m)] == ["draws"]
