import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer

from raysweep import __version__
from raysweep.cli import main as cli
from raysweep.cli.errors import EXIT_CODES
from raysweep.cli.options import Options
from raysweep.errors import RunFailedError


def command_that(action):
    module = types.ModuleType("raysweep.cli.fake")

    def command(ctx: typer.Context) -> None:
        """Do something."""
        action(ctx)

    module.command = command
    return module


@pytest.fixture
def fake(monkeypatch):
    def install(action):
        monkeypatch.setitem(sys.modules, "raysweep.cli.fake", command_that(action))
        monkeypatch.setattr(cli, "COMMANDS", {**cli.COMMANDS, "fake": ("raysweep.cli.fake:command", "Fake.")})

    return install


def raising(error):
    def action(ctx):
        raise error

    return action


def test_help_lists_every_command_and_exit_code_and_imports_none(run):
    before = {m for m in sys.modules if m.startswith("raysweep.cli.")}
    code, out, _ = run("--help")
    assert code == 0
    assert all(name in out for name in cli.COMMANDS)
    assert all(f"{number} =" in out for number in EXIT_CODES)
    assert {m for m in sys.modules if m.startswith("raysweep.cli.")} == before


def test_version(run):
    assert run("--version") == (0, f"raysweep {__version__}\n", "")


def test_unknown_command_suggests(run):
    code, _, err = run("valdate")
    assert code == 2
    assert "Did you mean 'validate'?" in err


def test_unknown_option_is_usage(run):
    code, _, err = run("validate", "--bogus")
    assert code == 2
    assert "--bogus" in err


def test_missing_command_module_fails_only_when_called(run, monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", {**cli.COMMANDS, "show": ("raysweep.cli.gone:command", "Show.")})
    assert run("--help")[0] == 0
    code, _, err = run("show")
    assert code == 2
    assert "command 'show' is not part of this installation\n    raysweep.cli.gone is missing" in err


def test_a_commands_own_missing_import_is_not_hidden(run, tmp_path, monkeypatch):
    (tmp_path / "brokencommand.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(cli, "COMMANDS", {**cli.COMMANDS, "show": ("brokencommand:command", "Show.")})
    code, _, err = run("show")
    assert code == 1
    assert "unexpected ModuleNotFoundError: No module named 'nowhere_to_be_found'" in err


def test_failed_trials(run, fake):
    fake(raising(RunFailedError("2 of 4 trials failed", hint="see FAILED.json")))
    code, _, err = run("fake")
    assert code == 3
    assert err.startswith("error[E-RUN] 2 of 4 trials failed\n    see FAILED.json\nSee docs/errors.md")


def test_unexpected_error(run, fake):
    fake(raising(ValueError("boom")))
    code, _, err = run("fake")
    assert code == 1
    assert err.startswith("unexpected ValueError: boom\n    this is a fault of raysweep")
    assert "Traceback" not in err


@pytest.mark.parametrize("argv", [("--debug", "fake"), ("fake", "--debug")])
def test_debug_prints_the_traceback_wherever_it_stands(run, fake, argv):
    fake(raising(ValueError("boom")))
    code, _, err = run(*argv)
    assert code == 1
    assert "Traceback" in err


def test_interrupt(run, fake):
    fake(raising(KeyboardInterrupt()))
    assert run("fake")[0] == 130


def test_options_reach_the_command(run, fake, tmp_path, monkeypatch):
    seen = []
    fake(lambda ctx: seen.append(ctx.find_object(Options)))
    run("--root", str(tmp_path / "a"), "fake")
    monkeypatch.setenv("RAYSWEEP_ROOT", str(tmp_path / "b"))
    run("fake", "--debug")
    assert seen == [Options(root=tmp_path / "a"), Options(root=tmp_path / "b", debug=True)]
    assert seen[0].workspace.root == tmp_path / "a"


def test_an_app_may_be_a_group(run, monkeypatch):
    module = types.ModuleType("raysweep.cli.group")
    module.app = typer.Typer()

    @module.app.command()
    def one() -> None:
        """One."""
        print("one")

    @module.app.command()
    def two() -> None:
        """Two."""

    monkeypatch.setitem(sys.modules, "raysweep.cli.group", module)
    monkeypatch.setattr(cli, "COMMANDS", {**cli.COMMANDS, "data": ("raysweep.cli.group:app", "Group.")})
    assert run("data", "one") == (0, "one\n", "")


def test_completion_is_on(run):
    assert "--install-completion" in run("--help")[1]


def test_shim_is_the_same_program():
    text = (Path(cli.__file__).resolve().parents[2] / "cli.py").read_text()
    assert "from raysweep.cli.main import main" in text


def test_python_dash_m_raysweep_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "raysweep", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("raysweep ")
