"""What a repository of the hub holds, by way of a mirror, with and without a token, offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysweep.downloads import hub
from raysweep.downloads.web import DownloadError, download
from tests.unit.downloads.hubserver import COMMIT, Hub

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "a folder/b.json": b"[1]"}


def test_files_with_their_digests_through_a_mirror(mirror: Hub, tmp_path: Path) -> None:
    mirror.add("some/model", FILES)
    found = hub.look_up("models", "some/model")
    assert (found.name, found.commit, set(found.files)) == ("some/model", COMMIT, set(FILES))
    assert len(found.files["model.safetensors"].sha256) == 64
    assert len(found.files["config.json"].blob) == 40
    for path, remote in found.files.items():
        assert remote.url.startswith(f"{mirror.root}/some/model/resolve/{COMMIT}/")
        assert download(remote, tmp_path / path).read_bytes() == FILES[path]
    mirror.add("some/set", FILES, kind="datasets", revision="v1/x")
    with pytest.raises(DownloadError, match="404"):
        hub.look_up("datasets", "some/set")
    assert "/datasets/some/set/resolve/" in hub.look_up("datasets", "some/set", "v1/x").files["config.json"].url


def test_the_token_is_sent_to_the_hub_and_never_shown(mirror: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.add("some/model", FILES)
    mirror.status["api/models/some/model/revision/main"] = 401
    for token in ("", "hf_secret"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(DownloadError) as caught:
            hub.look_up("models", "some/model")
        assert mirror.asked[-1][2] == (f"Bearer {token}" if token else "")
        cure = hub.cure("models", "some/model", caught.value)
        assert "accept the licence at https://huggingface.co/some/model; " in cure
        assert cure.endswith("must be of an account that did" if token else "then set HF_TOKEN")
        assert "hf_secret" not in cure + str(caught.value)


def test_offline_nobody_is_asked(mirror: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        hub.look_up("models", "some/model")
    assert not mirror.asked


@pytest.mark.parametrize("listing", [
    "<html>", "[]", '{"sha": "main", "siblings": []}', json.dumps({"sha": COMMIT}),
    json.dumps({"sha": COMMIT, "siblings": [{"rfilename": "../x", "size": 1}]}),
    json.dumps({"sha": COMMIT, "siblings": [{"rfilename": "/x", "size": 1}]}),
    json.dumps({"sha": COMMIT, "siblings": [{"rfilename": "a\\x", "size": 1}]}),
    json.dumps({"sha": COMMIT, "siblings": [{"size": 1}]}),
])  # fmt: skip
def test_what_is_no_hub_is_called_so(mirror: Hub, listing: str) -> None:
    mirror.files["api/models/some/model/revision/main"] = listing.encode()
    with pytest.raises(DownloadError, match="does not answer as the hub does"):
        hub.look_up("models", "some/model")


def test_a_listing_is_bounded(mirror: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.add("some/model", FILES)
    monkeypatch.setattr(hub, "_LARGEST_LISTING", 10)
    with pytest.raises(DownloadError, match="longer than 10 bytes"):
        hub.look_up("models", "some/model")


def test_the_endpoint_is_a_web_address() -> None:
    assert hub.endpoint({}) == hub.HUB
    with pytest.raises(DownloadError, match="HF_ENDPOINT is 'file:///x'"):
        hub.endpoint({"HF_ENDPOINT": "file:///x"})
