"""Every flag of every command, and every environment variable, takes effect or is refused by name.

``CHECKS`` has one entry for each; :func:`test_every_flag_has_a_check` walks the commands, so that a new flag needs one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from raysweep.cli import belief, import_, main, preflight, train_mend
from raysweep.cli import judge as cli_judge
from raysweep.config import overrides
from raysweep.config.parts import Part
from raysweep.config.schema import ProtocolSpec
from raysweep.data import fetch as data_fetch
from raysweep.data import fetch_sets
from raysweep.exports import ask, export, trials
from raysweep.models.sources import embedded_recipe, hub_fetch
from raysweep.models.sources import wheel as model_fetch
from raysweep.tune import analysis, jobs, launch
from raysweep.tune.analysis import Analysis
from raysweep.workspace import VARIABLES, Workspace, package_share
from tests.unit.cli.test_cli_results import write
from tests.unit.config.fakes import SWEEP

ROOT = Path(__file__).resolve().parents[3]
WIKIDATA = ROOT / "data/wikidata5m/sample"


class Seen(Exception):  # noqa: N818 - it ends a command before its work
    """What a command was about to do."""

    def __init__(self, *what: Any, **said: Any) -> None:
        super().__init__()
        self.what, self.said = what, said


class Bench:
    """Runs command lines in an empty folder, and looks at what came of them."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.patch, self.capsys = tmp_path, monkeypatch, capsys

    def run(self, *argv: str) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr of one command line."""
        code = main.main(argv)
        out, err = self.capsys.readouterr()
        return code, out, err

    def differs(self, base: list[str], *flag: str) -> None:
        """Assert that *flag* changes what the command *base* prints, and that it succeeds."""
        before, after = self.run(*base), self.run(*base, *flag)
        assert after[0] == 0, after[2]
        assert before[1] != after[1], f"{flag} changed nothing"

    def refused(self, base: list[str], *flag: str, by: str = "") -> None:
        """Assert that *flag* is refused, by its name."""
        code, _, err = self.run(*base, *flag)
        assert code == 2
        assert (by or flag[0]) in err

    def seen(self, target: Any, name: str, *argv: str) -> Seen:
        """Return what ``target.name`` was called with by a command line, which ends there."""
        caught: list[Seen] = []

        def spy(*what: Any, **said: Any) -> None:
            caught.append(Seen(*what, **said))
            raise caught[-1]

        with self.patch.context() as patched:
            patched.setattr(target, name, spy)
            code, _, err = self.run(*argv)
        assert caught, err
        assert code == 1
        return caught[0]

    def edit(self, *flags: str) -> Any:
        """Return the search space that ``raysweep edit`` makes of *flags*."""
        from raysweep.cli import edit

        return self.seen(edit, "plan", "edit", "--editor", "ft-m", *flags).what[0]

    def refuses_edit(self, *flags: str, by: str = "") -> None:
        """Assert that ``raysweep edit`` refuses the last of *flags* by name, before it runs anything."""
        self.refused(["edit", "--editor", "plain", "--data", "hundred", *flags[:-2]], *flags[-2:], by=by or flags[-2])

    def trained(self, *flags: str) -> Seen:
        """Return what ``raysweep train-mend`` would train with."""
        return self.seen(train_mend, "train", "train-mend", "--out", "net", *flags)

    def launched(self, *flags: str) -> Seen:
        """Return what ``raysweep run`` would launch."""
        (self.folder / "x.yaml").write_text(SWEEP)
        return self.seen(launch, "run_sweep", "run", "x.yaml", *flags)

    def basis(self, command: str, *flags: str) -> Any:
        """Return the spec of the belief testbed that *command* would build."""
        out = ["--out", "o.jsonl"] if command != "graph" else []
        return self.seen(belief, "open_graph", "belief", command, *out, *flags).what[0]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fakes: None) -> Bench:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "x.yaml").write_text(SWEEP + "space: {seed: {grid: [0, 1]}}\n")
    (tmp_path / "y.yaml").write_text(SWEEP.replace("sweep: x", "sweep: y"))
    for arm, value in (("plain", 0.25), ("wrapped", 0.5)):
        for seed in (0, 1):
            write(tmp_path, seed, arm, value)
    return Bench(tmp_path, monkeypatch, capsys)


Check = Callable[[Bench], None]
RETENTION = ["retention", "toy"]
PLAN, VALIDATE, SHOW, COMPARE = ["plan", "x.yaml"], ["validate", "x.yaml"], ["show", "toy"], ["compare", "toy"]


def _analyze(b: Bench, *flags: str) -> str:
    """Return what ``analyze`` prints of a log with two rounds."""
    keys = [p.name for p in (b.folder / "results/toy").iterdir() if p.is_dir()]
    rounds = {
        key: {2: {"retained/avg": 0.1 * i, "retained/rel": -0.1 * i, "time_total_s": 1.0}} for i, key in enumerate(keys)
    }

    def analyse(store: Any, keys: Any, *, metric: str, mode: str, trust: bool) -> Analysis:
        best = max(((key, own[2][metric]) for key, own in rounds.items()), key=lambda item: item[1]) if trust else None
        return Analysis(("s",), rounds, best, 0, ())

    b.patch.setattr(analysis, "analyse", analyse)
    code, out, err = b.run("analyze", "toy", *flags)
    return out if code == 0 else err


def _storage(b: Bench) -> None:
    assert b.launched("--storage", "there").what[1].storage == str(b.folder / "there")
    assert b.launched("--storage", "file:///x").what[1].storage == "file:///x"


def _root(b: Bench) -> None:
    b.patch.setenv("RAYSWEEP_ROOT", str(b.folder))
    assert b.run("--root", str(b.folder), *SHOW)[0] == 0
    assert str(b.folder / "else") in b.run("--root", "else", *SHOW)[2]  # above the variable, from the current folder


def _plot(b: Bench) -> None:
    assert b.run(*SHOW, "--plot", "sub/p.png")[0] == 0
    assert (b.folder / "sub/p.png").is_file()


def _models_fetch(b: Bench, *flags: str) -> Seen:
    return b.seen(model_fetch, "fetch", "models", "fetch", *flags)


def _wikidata(command: str) -> Check:
    def check(b: Bench) -> None:
        (b.folder / "wiki").symlink_to(WIKIDATA)
        found = b.basis(command, "--wikidata", "wiki", "--set", "graph.relations=8")
        assert (found.source, found.path) == ("wikidata5m", str(b.folder / "wiki"))
        b.refused(
            ["belief", command, "--wikidata", "wiki", *(["--out", "o"] if command != "graph" else [])],
            "--set", "graph.source=world", by="'graph.source' is given two values, here and by --wikidata",
        )  # fmt: skip

    return check


def _belief_set(command: str) -> Check:
    def check(b: Bench) -> None:
        assert b.basis(command, "--set", "graph.max_object_tokens=5").max_object_tokens == 5
        both = [
            "belief",
            command,
            *(["--out", "o"] if command != "graph" else []),
            "--set",
            "graph.max_object_tokens=5",
        ]
        b.refused(both, "--set", "graph.max_object_tokens=6", by="--set graph.max_object_tokens=6")

    return check


def _belief_file(command: str) -> Check:
    def check(b: Bench) -> None:
        (b.folder / "s.yaml").write_text("graph: {max_object_tokens: 6}\n")
        assert b.basis(command, "s.yaml").max_object_tokens == 6
        b.refused(["belief", command, *(["--out", "o"] if command != "graph" else [])], "nowhere.yaml")

    return check


def _out(command: str) -> Check:
    def check(b: Bench) -> None:
        def build(*_: Any) -> Any:
            corpus = SimpleNamespace(documents=list, statistics={})
            spec = SimpleNamespace(points=SimpleNamespace(size=0, novel=0))
            return SimpleNamespace(corpus=corpus, points=lambda passed_over: [], spec=spec)

        b.patch.setattr(belief, "build_parts", build)
        assert b.run("belief", command, "--out", "sub/o.jsonl")[0] == 0
        assert (b.folder / "sub/o.jsonl").is_file()

    return check


def _set(base: list[str]) -> Check:
    def check(b: Bench) -> None:
        b.differs(base, "--set", "seed={grid: [3, 4, 5]}")
        b.refused(base, "--set", "sed=3")

    return check


def _log(b: Bench) -> None:
    options = b.launched("--log", "tensorboard", "--log", "tensorboard").said["options"]
    assert options.log == ("tensorboard",)
    b.refused(["run", "x.yaml"], "--log", "tensorbored", by="did you mean: tensorboard?")


def _swept(b: Bench) -> None:
    assert {t.trial.seed for t in b.launched("--set", "seed=9").what[0].trials} == {9}


def _edits(b: Bench) -> None:
    assert b.edit("--edits", "7").base["data"]["size"] == 7
    b.refuses_edit("--rounds", "0,10", "--edits", "20")
    b.refuses_edit("--batch-size", "2", "--edits", "7")
    b.refuses_edit("--edits", "20", "--set", "data.size=10", by="--set data.size=10")


def _model(b: Bench) -> None:
    (b.folder / "mine").mkdir()
    assert b.edit("--model", "mine").base["model"] == {"name": "mine", "path": str(b.folder / "mine")}
    assert b.edit("--model", "gpt2-xl").base["model"] == {"name": "gpt2-xl"}
    (b.folder / "embedded").mkdir()
    assert b.edit("--model", "embedded").base["model"] == {"name": "embedded"}
    assert b.edit("--model", "./embedded").base["model"]["path"] == str(b.folder / "embedded")


def _only_with_simie(*flag: str) -> Check:
    def check(b: Bench) -> None:
        before, after = (b.edit("--simie", *more).arms[0].editor.wrap[0].config for more in ((), flag))
        assert before != after
        b.refused(["edit", "--editor", "null"], *flag, by="add --simie")

    return check


def _train(flag: str, value: str, of: Callable[[Seen], Any], wanted: Any) -> Check:
    def check(b: Bench) -> None:
        assert of(b.trained(flag, value)) == wanted

    return check


def _train_data(b: Bench) -> None:
    found = b.trained("--data", "ZsRE", "--data-path", "z.json").what[0].train.data
    assert (found.name, found.path) == ("zsre", str(b.folder / "z.json"))
    b.refused(["train-mend", "--out", "x", "--data", "zsre"], "--set", "train.data.name=world", by="--data zsre")


def _size(b: Bench) -> None:
    assert b.trained("--size", "40").what[0].train.data.size == 40
    b.refused(["train-mend", "--out", "x", "--size", "40"], "--set", "train.data.size=41", by="--size 40")


def _concurrent(b: Bench) -> None:
    (b.folder / "x.yaml").write_text(SWEEP + "resources: {concurrent: 2}\n")
    for number in (0, 1):
        found = b.seen(launch, "run_sweep", "run", "x.yaml", "--concurrent", str(number))
        assert (found.what[0].sweep.resources.concurrent, found.said["options"].concurrent) == (number, number)
    b.refused(["run", "x.yaml", "--concurrent", "3"], "--set", "resources.concurrent=1", by="--concurrent 3")


def _shard(b: Bench) -> None:
    assert b.launched("--shard", "2/3").said["options"].part == Part(2, 3)
    assert b.launched().said["options"].part is None
    b.refused(["run", "x.yaml"], "--shard", "4/3", by="--shard '4/3' names no part")
    b.refused(["run", "x.yaml", "--shard", "1/3"], "--fresh", by="run --fresh without --shard first")


def _option(name: str, value: Any, *flag: str) -> Check:
    def check(b: Bench) -> None:
        options = [b.launched(*more).said["options"] for more in ((), flag)]
        assert getattr(options[0], name) != getattr(options[1], name) == value

    return check


def _prints(base: list[str], *flag: str) -> Check:
    return lambda b: b.differs(base, *flag)


def _argument(base: list[str], one: str, other: str) -> Check:
    def check(b: Bench) -> None:
        outs = [b.run(*base, text) for text in (one, other)]
        assert outs[0][0] == 0, outs[0][2]
        assert outs[0][1] != outs[1][1]

    return check


def _wrote(base: list[str], flag: str, file: str) -> Check:
    def check(b: Bench) -> None:
        assert b.run(*base, flag, "sub")[0] == 0
        assert (b.folder / "sub" / file).is_file()

    return check


def _against(b: Bench) -> None:
    b.refused([*COMPARE, "--against", "nowhere"], "--by", "arm", by="nowhere")
    assert "--loosely" in b.run(*COMPARE, "--loosely")[2]


def _built(flag: str, value: Any) -> Check:
    def check(b: Bench) -> None:
        found = b.seen(embedded_recipe, "build", "models", "build", "embedded", "--out", "m", flag, str(value))
        assert found.said[flag.removeprefix("--")] == value

    return check


def _model_path(b: Bench) -> None:
    b.refused(["models", "info"], "--path", "nowhere", by=str(b.folder / "nowhere"))


def _data_path(b: Bench) -> None:
    sample = (package_share() / "data/ZsRE/sample.json").read_text(encoding="utf-8")
    (b.folder / "few.json").write_text(json.dumps(json.loads(sample)[:2]))
    assert "2 records" in b.run("data", "check", "zsre", "--path", "few.json")[1]
    b.refused(["data", "check", "world"], "--path", "few.json", by="dataset 'world' has no file")


def _asked(b: Bench, *argv: str) -> Seen:
    """Return what ``ask`` would ask, or ``export`` write, of a trial that kept its model."""
    records = [SimpleNamespace(prompt=f"p{i}") for i in range(20)]
    with b.patch.context() as patched:
        patched.setattr(trials.EditedTrial, "open", lambda sweep, text, workspace: SimpleNamespace(records=records))
        return b.seen(*((ask, "ask") if argv[0] == "ask" else (export, "export")), *argv)


def _answered(b: Bench) -> None:
    names = SimpleNamespace(arm="plain", key="k")
    opened = SimpleNamespace(name=names, trial=SimpleNamespace(protocol=ProtocolSpec(rounds=(2,))), records=[])
    b.patch.setattr(trials.EditedTrial, "open", lambda sweep, text, workspace: opened)
    b.patch.setattr(ask, "ask", lambda opened, prompts, *, length: [ask.Answers(p, "", "b", "a") for p in prompts])
    code, out, _ = b.run(*ASK, "One", "--format", "json")
    assert (code, json.loads(out)) == (0, [{"prompt": "One", "target": "", "before": "b", "after": "a"}])
    b.differs([*ASK, "One"], "--format", "json")


JUDGE = ["judge", "toy", "--url", "http://127.0.0.1:1/v1", "--model", "m"]
ASK, EXPORT = ["ask", "toy", "plain,seed=0"], ["export", "toy", "plain,seed=0", "--to", "out"]
SUBMIT = ["submit", "x.yaml", "--there", "/shared"]


def _submitted(b: Bench, *flags: str) -> Any:
    """Return the request that a `submit` with *flags* would send, from where it asks whether that runs already."""
    with b.patch.context() as patched:
        patched.setattr(jobs, "connect", lambda address: address)
        return b.seen(jobs, "running", *SUBMIT, *flags).what[1]


def _followed(b: Bench) -> None:
    """Without ``--no-follow`` the job that runs already is followed; with it, the command ends."""
    with b.patch.context() as patched:
        patched.setattr(jobs, "connect", lambda address: address)
        patched.setattr(jobs, "running", lambda client, request: "job-1")
        assert b.seen(jobs, "follow", *SUBMIT).what[1] == "job-1"
        assert b.run(*SUBMIT, "--no-follow")[0] == 0


CHECKS: dict[str, Check] = {
    "ask SWEEP": lambda b: b.refused(["ask"], "tpy", "plain", by="no results of 'tpy'"),
    "ask TRIAL": lambda b: b.refused(["ask", "toy"], "memit", by="no trial 'memit'"),
    "ask PROMPTS": lambda b: _equal(_asked(b, *ASK, "One", "Two").what[1], ["One", "Two"]),
    "ask --tokens": lambda b: _equal(_asked(b, *ASK, "--tokens", "3").said["length"], 3),
    "ask --records": lambda b: _equal(_asked(b, *ASK, "--records", "2").what[1], ["p0", "p1"]),
    "ask --format": _answered,
    "export SWEEP": lambda b: b.refused(["export", "--to", "out"], "tpy", "plain", by="no results of 'tpy'"),
    "export TRIAL": lambda b: b.refused(["export", "--to", "out", "toy"], "memit", by="no trial 'memit'"),
    "export --to": lambda b: b.refused(EXPORT[:3], "--to", "x.yaml", by="x.yaml is there already"),
    "export --as": lambda b: _equal(_asked(b, *EXPORT, "--as", "adapter").what[2], "adapter"),
    "submit FILE": lambda b: b.refused(["submit", "--there", "/shared"], "nowhere", by="no search space 'nowhere'"),
    "submit --there": lambda b: _equal(_submitted(b).root, "/shared"),
    "submit --set": lambda b: _equal(_submitted(b, "--set", "data.size=2").arguments, ("--set", "data.size=2")),
    "submit --storage": lambda b: _equal(_submitted(b, "--storage", "s3://b").arguments, ("--storage", "s3://b")),
    "submit --log": lambda b: _equal(_submitted(b, "--log", "wandb").arguments, ("--log", "wandb")),
    "submit --retry": lambda b: _equal(_submitted(b, "--retry").arguments, ("--retry",)),
    "submit --address": lambda b: _equal(b.seen(jobs, "connect", *SUBMIT, "--address", "http://h:1").what[0], "http://h:1"),
    "submit --follow": _followed,
    "submit --no-follow": _followed,
    "--root": _root,
    "--debug": lambda b: b.refused(["--debug", "show"], "nowhere", by="Traceback"),
    "--version": lambda b: _version(b),
    "run FILE": lambda b: _runs(b, "y.yaml", "y"),
    "run --set": _swept,
    "run --hparams": lambda b: _run_hparams(b),
    "run --address": _option("address", "here:1", "--address", "here:1"),
    "run --retry": _option("retry", True, "--retry"),
    "run --fresh": _option("fresh", True, "--fresh"),
    "run --repair": _option("repair", True, "--repair"),
    "run --anyway": _option("anyway", True, "--anyway"),
    "run --shard": _shard,
    "run --log": _log,
    "run --concurrent": _concurrent,
    "run --storage": _storage,
    "plan FILE": _argument(["plan"], "x.yaml", "y.yaml"),
    "plan --set": _set(PLAN),
    "plan --hparams": lambda b: _shown_hparams(b, PLAN),
    "plan --format": _prints(PLAN, "--format", "json"),
    "validate FILE": _argument(["validate"], "x.yaml", "y.yaml"),
    "validate --set": _set(VALIDATE),
    "validate --hparams": lambda b: _shown_hparams(b, VALIDATE),
    "validate --address": lambda b: _equal(
        b.seen(preflight, "check", *VALIDATE, "--address", "here:1").said["address"], "here:1"
    ),
    "ls KIND": _argument(["ls"], "metrics", "layouts"),
    "show SWEEP": lambda b: b.refused(["show"], "tpy", by="no results of 'tpy'"),
    "show --at": lambda b: b.refused(SHOW, "--at", "99", by="99"),
    "show --by": _prints(SHOW, "--by", "trial"),
    "show --phase": _prints(SHOW, "--phase", "immediate"),
    "show --format": _prints(SHOW, "--format", "csv"),
    "show --plot": _plot,
    "show --over": lambda b: b.refused(SHOW, "--over", "lam", by="--over says over which key to draw"),
    "show --wide": lambda b: _wider(b, SHOW),
    "show --ppl": lambda b: _passed(b, ["show", "toy"], "--ppl", "ppl"),
    "show --all": lambda b: _everything(b, "show"),
    "show --protocol": lambda b: b.refused(SHOW, "--protocol", "localft", by="nothing was measured under localft/1"),
    "compare --protocol": lambda b: b.refused(COMPARE, "--protocol", "localf", by="did you mean: localft"),
    "judge SWEEP": lambda b: b.refused(["judge", *JUDGE[2:]], "tpy", by="no results of 'tpy'"),
    "judge --url": lambda b: b.refused(["judge", "toy", "--model", "m"], "--url", "ftp://h", by="'ftp://h' is no http(s) address"),
    "judge --model": lambda b: _equal(b.seen(cli_judge, "judge_answers", *JUDGE).what[1].model, "m"),
    "judge --protocol": lambda b: b.refused(JUDGE, "--protocol", "localf", by="did you mean: localft"),
    "judge --at": lambda b: _equal(b.seen(cli_judge, "judge_answers", *JUDGE, "--at", "2").said["step"], 2),
    "judge --parallel": lambda b: _equal(b.seen(cli_judge, "judge_answers", *JUDGE, "--parallel", "3").said["parallel"], 3),
    "judge --timeout": lambda b: _equal(b.seen(cli_judge, "judge_answers", *JUDGE, "--timeout", "5").what[1].timeout, 5.0),
    "report SWEEP": lambda b: b.refused(["report"], "tpy", by="no results of 'tpy'"),
    "report --out": lambda b: _reported(b, "--out", "sub/r.html"),
    "report --at": lambda b: b.refused(["report", "toy"], "--at", "99", by="99"),
    "report --phase": lambda b: _reported(b, "--phase", "immediate"),
    "report --protocol": lambda b: b.refused(["report", "toy"], "--protocol", "localf", by="did you mean: localft"),
    "report --all": lambda b: _reported(b, "--all"),
    "plot KIND": lambda b: b.refused(["plot"], "survivl", "toy", by="did you mean: survival?"),
    "plot SWEEP": lambda b: b.refused(["plot", "edits"], "tpy", by="no results of 'tpy'"),
    "plot --out": lambda b: b.refused(["plot", "edits", "toy"], "--out", "p.gif", by="cannot draw into 'p.gif'"),
    "plot --over": lambda b: b.refused(["plot", "edits", "toy"], "--over", "lam", by="'edits' is over none"),
    "plot --at": lambda b: b.refused(["plot", "pareto", "toy"], "--at", "99", by="99"),
    "plot --phase": lambda b: _drawn_phase(b),
    "plot --all": lambda b: _drawn_all(b),
    "retention SWEEP": lambda b: b.refused(["retention"], "tpy", by="no results of 'tpy'"),
    "retention --floor": _prints(RETENTION, "--floor", "0.9"),
    "retention --wide": lambda b: _wider(b, RETENTION),
    "retention --format": _prints(RETENTION, "--format", "latex"),
    "retention --all": lambda b: _everything(b, "retention"),
    "compare SWEEPS": lambda b: b.refused(["compare"], "tpy", by="no results of 'tpy'"),
    "compare --by": lambda b: b.refused(COMPARE, "--by", "lam", by="no trial sweeps 'lam'"),
    "compare --at": lambda b: b.refused(COMPARE, "--at", "99", by="99"),
    "compare --phase": _prints(COMPARE, "--phase", "immediate"),
    "compare --to": lambda b: b.refused(COMPARE, "--to", "nobody", by="nobody"),
    "compare --pair": lambda b: b.refused([*COMPARE, "--by", "seed"], "--pair", "wrap"),
    "compare --wide": lambda b: _wider(b, COMPARE),
    "compare --format": _prints(COMPARE, "--format", "latex"),
    "compare --against": _against,
    "compare --loosely": _against,
    "compare --all": lambda b: _everything(b, "compare"),
    "analyze SWEEP": lambda b: b.refused(["analyze"], "tpy", by="no results of 'tpy'"),
    "analyze --metric": lambda b: _other(b, "--metric", "retained/rel"),
    "analyze --mode": lambda b: _other(b, "--mode", "min"),
    "analyze --at": lambda b: _other(b, "--at", "99"),
    "analyze --trust": lambda b: _other(b, "--trust"),
    "analyze --wide": lambda b: _wider(b, None),
    "analyze --format": lambda b: _other(b, "--format", "json"),
    "edit --editor": lambda b: _edit_words(b),
    "edit --hparams": lambda b: _edit_hparams(b),
    "edit --model": _model,
    "edit --data": lambda b: _equal(b.edit("--data", "CounterFact").base["data"]["name"], "counterfact"),
    "edit --data-path": lambda b: _equal(b.edit("--data-path", "z.json").base["data"]["path"], str(b.folder / "z.json")),
    "edit --simie": lambda b: _equal([w.name for w in b.edit("--simie").arms[0].editor.wrap], ["simie"]),
    "edit --lam": _only_with_simie("--lam", "5"),
    "edit --init-model": _only_with_simie("--init-model"),
    "edit --solver": _only_with_simie("--solver", "chol64"),
    "edit --edits": _edits,
    "edit --batch-size": lambda b: _equal(b.edit("--batch-size", "4").base["protocol"]["batch_size"], 4),
    "edit --rounds": lambda b: _equal(b.edit("--rounds", "0,50,100").base["protocol"]["rounds"], [0, 50, 100]),
    "edit --seed": lambda b: _seed(b),
    "edit --name": lambda b: _equal(b.edit("--name", "mine").name, "mine"),
    "edit --repair": lambda b: _repairs(b),
    "edit --set": lambda b: _edit_set(b),
    "import PROGRAM": lambda b: b.refused(["import", "pmet", "x.json"], by="results of 'pmet' are not read"),
    "import FILES": lambda b: _equal(len(_imported(b).what[1]), 1),
    "import --editor": lambda b: _equal(_imported(b, "--editor", "KN").said["editor"], "KN"),
    "import --model": lambda b: _equal(_imported(b, "--model", "m").said["model"], "m"),
    "import --data": lambda b: _equal(_imported(b, "--data", "d").said["data"], "d"),
    "import --name": lambda b: _import_name(b),
    "train-mend --out": lambda b: _equal(b.trained().what[3], b.folder / "net.safetensors"),
    "train-mend --model": lambda b: b.refused(["train-mend", "--out", "x"], "--model", "nowhere", by="model 'nowhere'"),
    "train-mend --data": _train_data,
    "train-mend --data-path": _train_data,
    "train-mend --skip": _train("--skip", "3", lambda s: s.what[0].train.data.skip, 3),
    "train-mend --size": _size,
    "train-mend --set": _train("--set", "train.steps=7", lambda s: s.what[0].train.steps, 7),
    "train-mend --threads": _train("--threads", "2", lambda s: s.said["threads"], 2),
    "models fetch NAME": lambda b: _equal(_models_fetch(b, "smollm2-135m").what[0], "smollm2-135m"),
    "models fetch --wheel": lambda b: _equal(
        _models_fetch(b, "smollm2-135m", "--wheel", "w.whl").said["wheel"], Path("w.whl")
    ),
    "models fetch --revision": lambda b: _equal(
        b.seen(hub_fetch, "fetch", "models", "fetch", "a/b", "--revision", "v1").said["revision"], "v1"
    ),
    "models fetch --file": lambda b: _equal(
        b.seen(hub_fetch, "fetch", "models", "fetch", "a/b", "--file", "x.gguf").said["file"], "x.gguf"
    ),
    "models check NAME": lambda b: b.refused(["models", "check"], "nowhere", by="unknown model 'nowhere'"),
    "models build NAME": lambda b: b.refused(["models", "build", "--out", "m"], "gpt2", by="cannot build 'gpt2'"),
    "models build --out": lambda b: _equal(
        b.seen(embedded_recipe, "build", "models", "build", "embedded", "--out", "m").what[0], Path("m")
    ),
    "models build --seed": _built("--seed", 3),
    "models build --threads": _built("--threads", 2),
    "models probe FOLDER": lambda b: b.refused(["models", "probe"], "nowhere", by="nowhere: no config.json"),
    "models info NAME": lambda b: b.refused(["models", "info"], "nowhere", by="unknown model 'nowhere'"),
    "models info --path": _model_path,
    "data fetch NAME": lambda b: b.refused(["data", "fetch"], "nowhere", by="nothing to fetch under 'nowhere'"),
    "data fetch --file": lambda b: _equal(
        b.seen(fetch_sets, "fetch_set", "data", "fetch", "MQuAKE", "--file", "a", "--file", "b*").said["files"], ["a", "b*"]
    ),
    "data ls NAME": lambda b: b.differs(["data", "ls"], "zsre"),
    "data fetch --archive": lambda b: _equal(
        b.seen(data_fetch, "fetch_brown", "data", "fetch", "brown", "--archive", "b.tgz").said["archive"], Path("b.tgz")
    ),
    "data check NAME": lambda b: b.refused(["data", "check"], "zsree", by="zsree"),
    "data check --path": _data_path,
    "belief report SWEEP": lambda b: b.refused(["belief", "report"], "tpy", by="no results of 'tpy'"),
    "belief report --out": lambda b: _report_out(b),
    "belief report --published": lambda b: _report_published(b),
    "belief report --no-published": lambda b: _report_published(b),
    "belief graph --csv": _wrote(["belief", "graph"], "--csv", "cooccurrence_counts.csv"),
    "belief graph --json": _prints(["belief", "graph"], "--json"),
    **{f"belief {c} FILE": _belief_file(c) for c in ("graph", "corpus", "points")},
    **{f"belief {c} --wikidata": _wikidata(c) for c in ("graph", "corpus", "points")},
    **{f"belief {c} --set": _belief_set(c) for c in ("graph", "corpus", "points")},
    **{f"belief {c} --out": _out(c) for c in ("corpus", "points")},
    "doctor --explain": lambda b: _equal("E-NAME" in b.run("doctor", "--explain", "E-NAME")[1], True),
}  # fmt: skip


def _equal(found: Any, wanted: Any) -> None:
    assert found == wanted


def _version(b: Bench) -> None:
    assert b.run("--version")[1].startswith("raysweep ")


def _runs(b: Bench, file: str, name: str) -> None:
    found = b.seen(launch, "run_sweep", "run", file)
    assert found.what[0].sweep.name == name
    b.refused(["run"], "nowhere", by="no search space 'nowhere'")


def _passed(b: Bench, base: list[str], flag: str, name: str) -> None:
    from raysweep.cli import show

    assert b.seen(show, "table", *base, flag).said[name] is True
    assert b.seen(show, "table", *base).said[name] is False


def _wider(b: Bench, base: list[str] | None) -> None:
    """A narrow terminal takes columns away, unless everything is asked for; None = of ``analyze``."""
    b.patch.setenv("COLUMNS", "40")
    before, after = (b.run(*base, *more)[1] if base else _analyze(b, *more) for more in ((), ("--wide",)))
    assert max(map(len, before.splitlines())) < max(map(len, after.splitlines()))


def _everything(b: Bench, command: str) -> None:
    """Trials of an earlier plan are shown with ``--all`` only."""
    _plan_one(b)
    b.differs([command, "toy"], "--all")


def _plan_one(b: Bench) -> None:
    """Leave one trial in the plan of the toy sweep; the others are an earlier plan's."""
    from raysweep.results.store import ResultStore

    store = ResultStore(b.folder / "results/toy")
    store.write_plan({"sweep": "toy", "trials": [{"key": store.keys()[0], "arm": "plain", "point": {}}]}, "")


def _drawn_phase(b: Bench) -> None:
    for phase in ("retained", "immediate"):
        assert b.run("plot", "edits", "toy", "--out", f"{phase}.png", "--phase", phase)[0] == 0
    assert (b.folder / "retained.png").read_bytes() != (b.folder / "immediate.png").read_bytes()


def _reported(b: Bench, *flag: str) -> None:
    """A report is another one with the flag, or elsewhere."""
    _plan_one(b)
    assert b.run("report", "toy")[0] == 0
    plain = (b.folder / "toy.html").read_text(encoding="utf-8")
    assert b.run("report", "toy", *flag)[0] == 0
    if flag[0] == "--out":
        assert (b.folder / flag[1]).read_text(encoding="utf-8") == plain
    else:
        assert (b.folder / "toy.html").read_text(encoding="utf-8") != plain


def _drawn_all(b: Bench) -> None:
    _plan_one(b)
    for flag in ([], ["--all"]):
        assert b.run("plot", "edits", "toy", "--out", f"p{len(flag)}.png", *flag)[0] == 0
    assert (b.folder / "p0.png").read_bytes() != (b.folder / "p1.png").read_bytes()


def _other(b: Bench, *flag: str) -> None:
    assert _analyze(b, *flag) != _analyze(b)


def _edit_words(b: Bench) -> None:
    assert b.edit().arms[0].editor.config == {"objective": "target_new"}
    b.refuses_edit("--set", "seed=1", "--set", "arms.ft.editor.name=rome", by="unknown arm 'ft'")
    code, _, err = b.run("edit", "--editor", "FT-M", "--set", "arms.ft.editor.objective=prompt_last")
    assert (code, "'editor.objective' is given two values, here and by --editor FT-M" in err) == (2, True)


def _theirs(b: Bench, name: str) -> str:
    (b.folder / "theirs.yaml").write_text(f"alg_name: {name}\ndevice: 0\n")
    return "theirs.yaml"


def _edit_hparams(b: Bench) -> None:
    file = b.edit("--hparams", _theirs(b, "FT")).arms[0].editor.file
    assert file.tree["alg_name"] == "FT"
    b.refuses_edit("--hparams", _theirs(b, "ROME"), by="this file is of ROME, not of 'plain'")
    code, _, err = b.run("edit", "--edits", "2")
    assert (code, "--editor is missing" in err) == (2, True)


def _ours(b: Bench, rate: str) -> str:
    ours = b.folder / "hparams/surgeon/ours.yaml"
    ours.parent.mkdir(parents=True, exist_ok=True)
    ours.write_text(f"source: here\nrate: {rate}\n")
    return str(ours)


def _shown_hparams(b: Bench, base: list[str]) -> None:
    b.refused(base, "--hparams", _ours(b, "high"), by="ours.yaml:2:7")
    assert b.run(*base, "--hparams", _ours(b, "7"))[0] == 0
    if base is PLAN:
        b.differs(base, "--hparams", _ours(b, "7"))
    b.refused(base, "--hparams", _theirs(b, "ROME"), by="is of 'rome', and no arm is")


def _run_hparams(b: Bench) -> None:
    planned = b.launched("--hparams", _ours(b, "7")).what[0]
    rates = {t.arm: t.trial.editor.config.stored_value("rate") for t in planned.trials}
    assert rates == {"plain": None, "surgeon": 7, "ridge": 7}
    b.refused(["run", "x.yaml"], "--hparams", _theirs(b, "ROME"), by="is of 'rome', and no arm is")


def _imported(b: Bench, *flags: str) -> Seen:
    return b.seen(import_, "runs_of", "import", "easyedit", "x.json", *flags)


def _import_name(b: Bench) -> None:
    post = {"rewrite_acc": [1.0]}
    (b.folder / "x.json").write_text(json.dumps([{"case_id": 0, "post": post}]))
    assert b.run("import", "easyedit", "x.json", "--editor", "KN", "--name", "theirs")[0] == 0
    assert (b.folder / "results/theirs/plan.json").is_file()
    b.refused(["import", "easyedit", "x.json", "--editor", "KN"], "--name", "toy", by="'toy' is a sweep of trials")


def _seed(b: Bench) -> None:
    assert b.edit("--seed", "3").base["seed"] == 3
    b.refuses_edit("--seed", "3", "--set", "seed=4", by="'seed' is given two values, here and by --seed 3")


def _edit_set(b: Bench) -> None:
    assert b.edit("--set", "seed=9").base["seed"] == 9
    b.refuses_edit("--edits", "2", "--set", "resources.cpu=4", by="resources.cpu has no effect on raysweep edit")


def _report_out(b: Bench) -> None:
    from raysweep.cli import belief_report

    b.patch.setattr(belief_report, "tables_of", lambda sweep: {"t": [{"a": 1}]})
    b.patch.setattr(belief_report, "draw", lambda *_: [])
    assert b.run("belief", "report", "toy", "--out", "sub")[0] == 0
    assert (b.folder / "sub/t.csv").is_file()


def _report_published(b: Bench) -> None:
    from raysweep.cli import belief_report

    b.patch.setattr(belief_report, "tables_of", lambda sweep: {"t": [{"a": 1}]})
    b.patch.setattr(belief_report, "draw", lambda *_: [])
    b.patch.setattr(belief_report, "write_published", lambda sweep, folder: 3)
    base = ["belief", "report", "toy", "--out", "sub"]
    assert "3 files as published" in b.run(*base, "--published")[1]
    assert "files as published" not in b.run(*base, "--no-published")[1]


def _repairs(b: Bench) -> None:
    from raysweep.cli import edit

    base = ["edit", "--editor", "plain", "--data", "hundred"]
    assert [b.seen(edit, "_make", *base, *more).said["repair"] for more in ((), ("--repair",))] == [False, True]


def flags_of(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Yield ``run --set`` or ``run FILE`` for each parameter of *command* and of the commands below it."""
    if path and getattr(command, "commands", None):
        for name, below in command.commands.items():
            yield from flags_of(below, (*path, name))
        return
    for one in command.params:
        if one.param_type_name == "option":
            yield from (" ".join((*path, o)) for o in one.opts + one.secondary_opts if o.startswith("--"))
        else:
            yield " ".join((*path, one.name.upper()))


def every_flag() -> set[str]:
    found = set(flags_of(typer.main.get_command(main.app), ()))
    for name in main.COMMANDS:
        found |= set(flags_of(main.load(name), (name,)))
    return {f for f in found if not f.endswith(("--help", "-completion"))}


def test_every_flag_has_a_check() -> None:
    assert every_flag() == set(CHECKS), "each flag needs an entry in CHECKS that shows its effect, or its refusal"


@pytest.mark.parametrize("flag", sorted(CHECKS))
def test_takes_effect_or_is_refused(bench: Bench, flag: str) -> None:
    CHECKS[flag](bench)


class TestEnvironment:
    def test_every_variable_is_known(self) -> None:
        files = (p for p in (ROOT / "raysweep").rglob("*.py") if "_share" not in p.parts)
        named = {name for p in files for name in re.findall(r"\bRAYSWEEP_[A-Z_]+\b", p.read_text(encoding="utf-8"))}
        assert named == set(VARIABLES)

    @pytest.mark.parametrize("name", ["RAYSWEEP_ROOTS", "RAYSWEEP_STORE", "RAYSWEEP_DEBUG"])
    def test_an_unknown_one_is_refused_by_name(self, bench: Bench, name: str) -> None:
        bench.patch.setenv(name, "x")
        code, out, err = bench.run(*SHOW)
        assert (code, out) == (2, "")
        assert f"unknown environment variable {name}" in err
        assert "RAYSWEEP_ROOT" in err

    def test_the_root(self, bench: Bench) -> None:
        bench.patch.setenv("RAYSWEEP_ROOT", "elsewhere")
        assert str(bench.folder / "elsewhere") in bench.run(*SHOW)[2]

    def test_the_key_of_a_judge(self, bench: Bench) -> None:
        assert bench.seen(cli_judge, "judge_answers", *JUDGE).what[1].key == ""
        bench.patch.setenv("RAYSWEEP_JUDGE_KEY", "secret")
        assert bench.seen(cli_judge, "judge_answers", *JUDGE).what[1].key == "secret"

    def test_the_storage_counts_from_the_current_folder(self, bench: Bench) -> None:
        bench.patch.setenv("RAYSWEEP_STORAGE", "elsewhere")
        assert bench.launched().what[1].storage == str(bench.folder / "elsewhere")
        assert bench.launched("--storage", "there").what[1].storage == str(bench.folder / "there")
        bench.patch.setenv("RAYSWEEP_STORAGE", "s3://bucket/x")
        assert Workspace.here().storage == "s3://bucket/x"


def test_overrides_of_trees_that_are_no_search_space() -> None:
    found = overrides.parse_overrides(["a.b=1", "a={c: 2}"])
    assert [o.key for o in found] == ["a", "a.b"]
