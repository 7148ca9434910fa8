import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from raysweep import runtime
from raysweep.cli import docs, doctor
from raysweep.cli.ls import Kind, listing
from raysweep.config.schema import TrialSpec
from raysweep.errors import NameUnknownError, Problem, ProblemsError, SpecError
from raysweep.results.store import ResultStore
from raysweep.workspace import Workspace
from tests.unit.config.fakes import SWEEP

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "x.yaml").write_text(SWEEP + "space: {seed: {grid: [0, 1]}}\n")
    return "x.yaml"


@pytest.mark.usefixtures("fakes")
class TestValidate:
    def test_ok(self, run, file):
        assert run("validate", file) == (0, "ok: 6 trials in 3 arms\n", "")

    def test_notes(self, run, file, tmp_path):
        code, out, _ = run("validate", file, "--set", "arms.surgeon={editor: plain}")
        assert code == 0
        assert "note: arm 'surgeon': 2 of its points are trials already in the plan" in out

    def test_problems(self, run, file):
        code, out, err = run("validate", file, "--set", "data.pth=1", "--set", "arms.ridge.wrap.ridge.lam=0")
        assert (code, out) == (2, "")
        assert "error[E-SPEC] --set data.pth=1  unknown key 'pth' in data\n    did you mean: path?" in err
        assert "'ridge': lam: should be greater than 0, got 0" in err
        assert err.endswith("2 errors; nothing was run.\nSee docs/errors.md or `raysweep doctor --explain E-SPEC`.\n")

    def test_yaml_mistake(self, run, tmp_path):
        (tmp_path / "bad.yaml").write_text("sweep: x\narms: {a: [1")
        code, _, err = run("validate", "bad.yaml")
        assert code == 2
        assert err.startswith("error[E-YAML] bad.yaml:2:11  this bracket is not closed")

    def test_unknown_file(self, run):
        code, _, err = run("validate", "smokee")
        assert code == 2
        assert "error[E-NAME] no search space 'smokee'" in err
        assert "did you mean: smoke?" in err


@pytest.mark.usefixtures("fakes")
class TestPlan:
    def test_every_arm_is_listed_and_nothing_is_cut(self, run, tmp_path, monkeypatch):
        """Two arms of one trial are two rows; on a narrow terminal two names that differ at their ends still differ."""
        monkeypatch.setenv("COLUMNS", "80")
        arms = [f"an_arm_with_a_name_that_is_longer_than_its_column_{end}" for end in "ab"]
        listed = "".join(f"  {arm}: {{editor: plain}}\n" for arm in arms)
        space = "space: {seed: {grid: [0]}, protocol.eval_batch: {grid: [1234567891, 1234567892]}}\n"
        (tmp_path / "long.yaml").write_text(SWEEP + listed + space)
        code, out, _ = run("plan", "long.yaml")
        assert code == 0
        assert "…" not in out
        monkeypatch.setenv("COLUMNS", "300")
        code, out, _ = run("plan", "long.yaml")
        rows = [line.split() for line in out.splitlines() if line.strip().startswith("an_arm")]
        assert [(row[0], row[2][-1]) for row in rows] == [(arm, end) for arm in arms for end in "12"]
        assert [row[3] for row in rows[:2]] == [row[3] for row in rows[2:]], "equal content, equal keys"
        assert "6 trials, 120 edits in all" in out

    def test_table(self, run, file):
        code, out, _ = run("plan", file)
        assert code == 0
        assert "surgeon" in out
        assert "seed=1" in out
        assert "rounds [0, 5, 20] (batch size 1): plain, surgeon, ridge" in out
        assert out.endswith("6 trials, 120 edits in all; 0 done, 6 to run\n")

    def test_edit_groups_count_their_edits_once(self, run, file):
        assert run("plan", file, "--set", "wrap.ridge.lam={path: [0.1, 1, 10]}")[1].endswith(
            "10 trials in 6 edit groups, 120 edits in all; 0 done, 10 to run\n"
        )
        _, out, _ = run("plan", file, "--set", "wrap.ridge.lam={path: [1]}", "--format", "json")
        assert [bool(t["edit_group"]) for t in json.loads(out)["trials"]] == [False] * 4 + [True] * 2

    def test_json_has_every_resolved_value(self, run, file):
        code, out, _ = run("plan", file, "--format", "json", "--set", "space.seed={grid: [3]}")
        assert code == 0
        found = json.loads(out)
        assert [t["point"] for t in found["trials"]] == [{"seed": 3}] * 3
        assert found["trials"][2]["trial"]["editor"]["wrap"][0]["config"]["lam"] == 1.0
        assert found["trials"][0]["status"] == "absent"
        assert found["sweep"]["space"] == {"seed": {"grid": [3]}}

    def test_notes(self, run, file):
        assert "note: arm 'surgeon'" in run("plan", file, "--set", "arms.surgeon={editor: plain}")[1]


@pytest.mark.usefixtures("fakes")
def test_status_is_the_stores(run, file, tmp_path):
    plan = json.loads(run("plan", file, "--format", "json")[1])
    assert {t["status"] for t in plan["trials"]} == {"absent"}
    begun, broken, *rest = plan["trials"]
    store = ResultStore(tmp_path / "results" / plan["sweep"]["name"])
    store.begin(TrialSpec.read_back(begun["trial"]), arm="plain", point={}, provenance={})
    (tmp_path / "results" / plan["sweep"]["name"] / broken["key"]).mkdir()
    (tmp_path / "results" / plan["sweep"]["name"] / broken["key"] / "trial.json").write_text("[]")
    again = json.loads(run("plan", file, "--format", "json")[1])["trials"]
    assert [t["status"] for t in again] == ["interrupted", "damaged", *("absent" for _ in rest)]
    assert again[1]["reason"].endswith("trial.json holds a list, not a JSON object")
    code, out, _ = run("plan", file)
    assert (code, f"note: damaged: {broken['arm']} {broken['key']}: " in out) == (0, True)


class TestLs:
    @pytest.mark.parametrize("kind", list(Kind))
    def test_rows_fit_their_headings(self, kind):
        headings, rows = listing(kind, Workspace(ROOT))
        assert rows
        assert all(len(row) == len(headings) for row in rows)

    def test_local_models_are_listed(self, tmp_path):
        (tmp_path / "models" / "mine").mkdir(parents=True)
        assert ("mine", "local", "") in listing(Kind.MODELS, Workspace(tmp_path))[1]

    def test_one_table(self, run):
        code, out, _ = run("ls", "editors")
        assert code == 0
        assert "patch" in out
        assert "weights" in out
        assert "wrappers" not in out

    def test_unknown_table(self, run):
        assert run("ls", "editrs")[0] == 2


class TestDoctor:
    def test_explain(self, run):
        code, out, _ = run("doctor", "--explain", "e-name")
        assert code == 0
        assert out.startswith("E-NAME  A name is not in its table.\n\nCause: ")

    def test_explain_unknown(self, run):
        code, _, err = run("doctor", "--explain", "E-NAM")
        assert code == 2
        assert "unknown error code 'E-NAM'\n    did you mean: E-NAME" in err

    def test_faults_have_cures(self, run, monkeypatch):
        found = [doctor.Finding("torch", "not installed", False, "pip install torch"), doctor.Finding("cpu", "2")]
        monkeypatch.setattr(doctor, "check", lambda workspace: iter(found))
        code, out, _ = run("doctor")
        assert code == 1
        assert "FAIL  torch          not installed\n                     pip install torch\n" in out
        assert out.endswith("1 fault\n")

    def test_all_good(self, run, monkeypatch):
        monkeypatch.setattr(doctor, "check", lambda workspace: iter([doctor.Finding("cpu", "2")]))
        code, out, _ = run("doctor")
        assert (code, out.splitlines()[-1]) == (0, "all good")

    @pytest.mark.parametrize(
        ("variables", "result"),
        [
            ({}, "its own on this machine, on loopback; token authentication on"),
            ({"RAY_AUTH_MODE": "disabled"}, "its own on this machine, on loopback; token authentication off"),
            (
                {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},
                "its own on this machine, on every address (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is set); token authentication on",
            ),
            (
                {"RAY_ADDRESS": "h:1"},
                "joins h:1, as RAY_ADDRESS says; `--address local` starts its own; token authentication off here",
            ),
            (
                {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_AUTH_MODE": "token"},
                "joins auto, as this Ray job says; `--address local` starts its own; token authentication on here",
            ),
            (
                {"RAY_ADDRESS": "ray://h:10001"},
                "RAY_ADDRESS 'ray://h:10001' is a Ray Client address; a sweep would not outlive the connection",
            ),
        ],
    )
    def test_the_ray_that_a_sweep_runs_in(self, variables, result, monkeypatch, tmp_path):
        monkeypatch.setattr(doctor.os, "environ", variables)
        monkeypatch.setattr(doctor.Path, "home", lambda: tmp_path)
        found = doctor._ray(lambda package: "2.60.0")
        assert (found.result, found.good) == (result, "Client" not in result)
        assert bool(found.cure) == ("off" in result or "Client" in result)
        assert "off" in doctor._ray(lambda package: "2.48.0").result or not found.good

    def test_missing_packages(self, tmp_path, monkeypatch):
        monkeypatch.setattr(doctor, "_device", lambda: doctor.Finding("device", "CPU"))

        def absent(package):
            raise PackageNotFoundError(package)

        found = {f.what: f for f in doctor.check(Workspace(tmp_path), absent)}
        assert not found["ray"].good
        assert found["ray"].cure == "pip install ray"
        assert found["gguf"].good
        assert found["gguf"].cure == "optional: pip install 'raysweep[gguf]'"

    def test_device(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for driver, cure in ((None, ""), ("580.65.06", "NVIDIA driver 580.65.06")):
            monkeypatch.setattr(runtime, "driver", lambda driver=driver: driver)
            found = doctor._device()
            assert found.good
            assert found.result == "CPU only (trials get no GPU)"
            assert cure in found.cure
            assert bool(cure) == bool(found.cure)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
        assert doctor._device().result == f"2 × NVIDIA H200, driver 580.65.06, {runtime.torch_build()}"

    def test_unwritable_folder(self, tmp_path, monkeypatch):
        def refuse(**_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
        found = doctor._folder("root", tmp_path / "a" / "b")
        assert not found.good
        assert "cannot write (Permission denied)" in found.result
        assert f"make {tmp_path} writable" in found.cure

    def test_full_disk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(doctor, "MIN_FREE", 2**62)
        assert "free some space" in doctor._folder("root", tmp_path).cure

    def test_share_without_its_folders(self, tmp_path):
        found = doctor._share(Workspace(tmp_path, share=tmp_path))
        assert "lacks search_spaces, hparams, data" in found.result
        assert found.cure == "reinstall raysweep"

    def test_remote_results(self, tmp_path):
        found = {f.what: f for f in doctor._folders(Workspace(tmp_path, storage="s3://b"))}
        assert found["results"].result.startswith("s3://b (remote")


class TestDocs:
    def test_errors_page_is_in_sync(self):
        assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == docs.errors_page(), (
            "run: python -m raysweep.cli.docs errors > docs/errors.md"
        )

    def test_every_error_has_cause_and_cure(self):
        for code in docs.error_classes():
            text = docs.explain(code)
            assert "\nCause: " in text
            assert "\nCure: " in text

    def test_unknown_code(self):
        with pytest.raises(NameUnknownError, match="unknown error code 'E-X'"):
            docs.explain("E-X")

    def test_main(self, capsys):
        assert docs.main(["errors"]) == 0
        assert capsys.readouterr().out == docs.errors_page()
        assert docs.main([]) == 2
        assert "usage: python -m raysweep.cli.docs {architecture|errors|keys}" in capsys.readouterr().err


def test_problems_name_their_code():
    from raysweep.cli.errors import describe

    assert describe(ProblemsError([Problem(code="E-WRAP", message="m")])).endswith("--explain E-WRAP`.")
    assert describe(SpecError("m", hint="h")).startswith("error[E-SPEC] m\n    h\n")
