"""Without a tracker nothing is written and nothing is imported."""

import json


def test_none(track, folder):
    done = track(tracker="none")
    said = json.loads(done.stdout)
    assert said["tracking"] == {"tracker": "none"}
    assert said["modules"] == []
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "eval", "mix.json"]
