"""A package with a component of each kind, built and installed as anybody's: every command finds it, and a sweep runs with it.

Beside it lies a package whose every component is broken; it is named, and stops nobody else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from raysweep.installed import component_tables
from tests.docs.pages import run_parts

TOY = Path(__file__).parent / "toy"
KINDS = {
    "editors": "shift",
    "wrappers": "half",
    "datasets": "pets",
    "layouts": "stablelm",
    "metrics": "first_right",
    "studies": "twice",
}
SPACE = """\
sweep: toy
study: twice
base:
  model: {name: tiny, path: model}
  data: {name: pets, order: file}
  protocol: {rounds: [0, 2], metrics: [first_right, token_match]}
arms:
  plain: {editor: {name: shift, size: 0.5}}
  half:  {editor: {name: shift, size: 0.5}, wrap: half}
"""
MODEL = """
from raysweep.testing.fixtures import byte_tokenizer
from raysweep.testing.layout_contract import check_layout_contract, tiny_model
from raysweep.models.layout import LAYOUTS
module = tiny_model("stablelm", vocab_size=258)
check_layout_contract(LAYOUTS.get("stablelm"), module)
module.save_pretrained("model")
byte_tokenizer(bos=True).save_pretrained("model")
"""
RUN = """
import json, raysweep
def versions(trial):
    return [trial.versions[name] for name in ("study/twice", "metric/first_right")]
outcome = raysweep.run_sweep("toy", backend="inline")
assert outcome.exit_code == 0, outcome
sweep = raysweep.open_sweep("toy")
rows, trials = sweep.rows().read_all(), sweep.trials()
print(json.dumps({
    "metrics": rows["metric"].unique().to_pylist(), "records": sorted(rows["record_id"].unique().to_pylist()),
    "editors": trials["editor"].to_pylist(), "studies": trials["study"].to_pylist(),
    "drift": [row["value"] for row in sweep.stats().to_pylist() if row["step"] == 2 and row["name"].startswith("drift/")],
    "versions": [versions(sweep.records[key].about()[1]) for key in sweep.keys],
}))
"""
CRASH = """
import raysweep_toy.dataset as dataset, sys
from raysweep.cli.main import main
def standard_probes(*_):
    raise ZeroDivisionError("a slip")
dataset.standard_probes, sys.stderr = standard_probes, sys.stdout
print("exit", main(["validate", "toy"]))
"""
COMMAND = "from raysweep.cli.main import main; import sys; sys.stderr = sys.stdout; print('exit', main({argv}))"


def command(*argv: str) -> str:
    return COMMAND.format(argv=list(argv))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace, with both packages as an installer leaves them."""
    root, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("dist")
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--skip-dependency-check",
        "-o",
        str(out),
        str(TOY),
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(root)
    info = root / "broken_pack-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-pack\nVersion: 0.1\n")
    groups = [f"[raysweep.{kind}]\nbroken_{kind} = broken_pack:Thing\n" for kind in KINDS]
    (info / "entry_points.txt").write_text("".join(groups))
    (root / "broken_pack.py").write_text("import a_package_that_is_not_there\n")
    for file, text in {
        "search_spaces/toy.yaml": SPACE,
        "search_spaces/broken.yaml": SPACE.replace("{name: shift, size: 0.5}", "broken_editors").replace(
            "first_right", "broken_metrics"
        ),
        "data/pets/pets.json": json.dumps([{"who": "Ana", "pet": "cat"}, {"who": "Bo", "pet": "dog"}]),
    }.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def printed(root: Path) -> dict[str, str]:
    """What one fresh process that finds both packages prints of each part."""
    return run_parts(
        root,
        {
            **{f"ls {kind}": command("ls", kind) for kind in KINDS},
            "model": MODEL,
            "validate": command("validate", "toy"),
            "run": RUN,
            "broken": command("validate", "broken"),
            "doctor": command("doctor"),
            "crash": CRASH,
        },
    )


def test_there_are_no_other_kinds() -> None:
    assert {f"raysweep.{kind}" for kind in KINDS} == set(component_tables())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_listed_and_so_is_what_is_broken(kind: str, printed: dict[str, str]) -> None:
    said = " ".join(printed[f"ls {kind}"].split())
    assert "exit 0" in said
    assert f" {KINDS[kind]} " in said
    assert f" broken_{kind} " in said
    assert "broken-pack 0.1" in said


def test_the_core_has_the_components_too(printed: dict[str, str]) -> None:
    assert printed["validate"].rstrip().endswith("exit 0"), printed["validate"]
    found = json.loads(printed["run"].splitlines()[-1])
    assert sorted(found["metrics"]) == ["first_right", "token_match"]
    assert found["records"] == ["pets/000000", "pets/000001"]
    assert sorted(found["editors"]) == ["shift", "shift+half"]
    assert found["studies"] == ["twice", "twice"]
    assert found["versions"] == [[7, 4], [7, 4]]
    plain, half = sorted(found["drift"], reverse=True)
    assert plain == pytest.approx(2 * half)


def test_what_is_broken_is_named_with_its_package(printed: dict[str, str]) -> None:
    said = " ".join(printed["broken"].split())
    assert said.endswith("exit 2")
    for what in ("editor 'broken_editors'", "metric 'broken_metrics'"):
        assert f"{what} (broken_pack:Thing) of the package broken-pack 0.1 cannot be loaded" in said
    assert "No module named 'a_package_that_is_not_there'" in said
    assert "pip uninstall broken-pack" in said


def test_an_error_in_its_code_is_not_called_ours(printed: dict[str, str]) -> None:
    said = " ".join(printed["crash"].split())
    assert said == (
        "unexpected ZeroDivisionError: a slip this is a fault of raysweep-toy 1.2.3; please report it with the output of "
        "--debug exit 1"
    )


def test_doctor_names_both(printed: dict[str, str]) -> None:
    said = " ".join(printed["doctor"].split())
    assert "ok plug-ins broken-pack 0.1, raysweep-toy 1.2.3" in said
    assert said.count("of the package broken-pack 0.1 cannot be loaded") == len(KINDS)
