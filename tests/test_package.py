"""The wheel carries everything a stranger needs, and nothing that was put into data/ by hand."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_has_the_model_the_spaces_and_the_hyper_parameters(names: set[str]) -> None:
    share = {p.relative_to(ROOT).as_posix() for k in ("search_spaces", "hparams") for p in (ROOT / k).rglob("*.yaml")}
    share |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "data/published").glob("*.csv")}
    missing = {f"raysweep/_share/{s}" for s in share} - names
    assert not missing
    for wanted in (
        "raysweep/py.typed",
        "raysweep/data/manifests.toml",
        "raysweep/models/sources/_embedded/model.safetensors",
        *(f"raysweep/_share/data/{name}/sample.json" for name in ("ZsRE", "counterfact", "hallucination")),
        "raysweep/_share/hparams/README.md",
        "raysweep/tune/loggers/worker.py",
    ):
        assert wanted in names
    # Whatever lies beside the code is read by it: tables, the embedded model.
    beside = {p.relative_to(ROOT).as_posix() for p in (ROOT / "raysweep").rglob("*") if p.is_file()}
    assert not {n for n in beside if not n.endswith((".pyc", ".py"))} - names


def test_the_wheel_leaves_real_data_and_the_shim_behind(names: set[str]) -> None:
    data = {n for n in names if n.startswith("raysweep/_share/data/") and "/published/" not in n}
    assert all(Path(n).name.startswith(("sample", "README")) for n in data)
    assert "cli.py" not in names
    assert not any(n.startswith("tests/") for n in names)
