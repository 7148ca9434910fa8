from pathlib import Path

from raysweep.workspace import Workspace, package_share


def test_root_hides_share(tmp_path):
    root, share = tmp_path / "root", tmp_path / "share"
    for base, names in ((root, ["a"]), (share, ["a", "b"])):
        (base / "search_spaces").mkdir(parents=True)
        for name in names:
            (base / "search_spaces" / f"{name}.yaml").write_text(str(base))
    workspace = Workspace(root, share=share)
    assert workspace.find_space("a") == root / "search_spaces/a.yaml"
    assert workspace.find_space("b") == share / "search_spaces/b.yaml"
    assert workspace.find_space("c") is None
    assert workspace.spaces() == {"a": root / "search_spaces/a.yaml", "b": share / "search_spaces/b.yaml"}
    assert workspace.hparams("rome") == {}


def test_layout(tmp_path):
    workspace = Workspace(tmp_path)
    assert workspace.results("x") == str(tmp_path / "results/x")
    assert workspace.artifacts == tmp_path / "artifacts"
    assert workspace.models == tmp_path / "models"
    assert workspace.data == tmp_path / "data"
    assert Workspace(tmp_path, storage="s3://b/p/").results("x") == "s3://b/p/x"


def test_here_prefers_the_argument_then_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYSWEEP_ROOT", raising=False)
    monkeypatch.delenv("RAYSWEEP_STORAGE", raising=False)
    assert Workspace.here().root == tmp_path
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path / "e"))
    monkeypatch.setenv("RAYSWEEP_STORAGE", "gs://x")
    assert Workspace.here().root == tmp_path / "e"
    assert Workspace.here().results_root == "gs://x"
    assert Workspace.here(tmp_path / "a").root == tmp_path / "a"


def test_relative_paths_are_taken_from_the_root(tmp_path):
    workspace = Workspace(tmp_path)
    assert workspace.resolve("a/../b") == tmp_path / "b"
    assert workspace.resolve("/x") == Path("/x")


def test_share_holds_what_travels_with_the_package():
    assert (package_share() / "search_spaces").is_dir()
