"""Files of one program → its runs: which files belong together, and what their names say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from raysweep.errors import Problem, ProblemsError, StoreError
from raysweep.jsontypes import mapping_of
from raysweep.results.theirs import easyedit, memit
from raysweep.results.theirs.cases import Case, Notes
from raysweep.results.theirs.trials import ImportedRun

Reader = Callable[[Path, str, Notes], list[Case]]
READERS: Mapping[str, Reader] = {
    "easyedit": easyedit.read,
    "simie": easyedit.read,
    "memit": memit.read,
    "nas": memit.read,
}
"""How the files of each program are read."""
# SimIE: {model}_{method}_N={n}_Sequential={…}_{SimIE?}_{λ}_{initial weights?}.json
_SIMIE = re.compile(
    r"(?P<model>.+)_(?P<editor>[A-Za-z-]+)_N=\d+_Sequential=\w+_(?P<simie>\w+)_(?P<lam>[^_]+)_(?P<init>\w+)"
)


def runs_of(
    program: str, files: Sequence[Path], *, editor: str = "", model: str = "", data: str = ""
) -> list[ImportedRun]:
    """Return the runs that *files* of *program* hold: one for each protocol in them.

    Args:
        program: one of :data:`READERS`.
        files: of EasyEdit and SimIE a run each; of MEMIT a folder is a run, of NAS all of ``checkpoint_evals``.
        editor: the method; empty = told by the file's name or folder.
        model: the model's name; empty likewise.
        data: the dataset's name.

    Raises:
        ProblemsError: everything that is wrong with any of the files.
    """
    problems: list[Problem] = []
    runs: list[ImportedRun] = []
    for together in _groups(program, files):
        method, name, settings = _told(program, together[0])
        method, name = editor or method, model or name or "unknown"
        cases: list[Case] = []
        for file in together:
            notes = Notes(str(file))
            if not method:
                notes.say("", "the file does not say which method it is of", "say it: --editor MEMIT")
            read = READERS[program](file, method, notes)
            if not read and not notes.problems:
                notes.say("", "holds no records")
            problems += notes.problems
            cases += read
        problems += _twice(together[0], cases)
        immediate = program == "easyedit" and easyedit.is_immediate(together[0])
        # A trial has one protocol, so that values measured in two ways are never set against each other.
        for protocol in dict.fromkeys(case.protocol for case in cases):
            chosen = tuple(case for case in cases if case.protocol == protocol)
            runs.append(
                ImportedRun(
                    program=program, files=tuple(together), editor=method, model=name, data=data, settings=settings,
                    cases=chosen, immediate=immediate,
                )
            )  # fmt: skip
    if problems:
        raise ProblemsError(problems)
    return runs


def _groups(program: str, files: Sequence[Path]) -> list[list[Path]]:
    """Return which of *files* are of one run."""
    groups: dict[Path, list[Path]] = {}
    for file in files:
        # MEMIT writes a file for each record; NAS one for each checkpoint, in a folder of its own.
        run = {"memit": file.parent, "nas": file.parent.parent}.get(program, file)
        groups.setdefault(run, []).append(file)
    return [sorted(group, key=_natural) for group in groups.values()]


def _natural(file: Path) -> tuple[int | str, ...]:
    # case_10 comes after case_9: the order of the files is that of the records.
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(file)))


def _told(program: str, file: Path) -> tuple[str, str, dict[str, str]]:
    """Return method, model and settings as far as the name of *file* or its folder tell them."""
    if program == "simie":
        match = _SIMIE.fullmatch(file.stem)
        if match is None:
            return "", "", {}
        # The name has a λ where SimIE was off, too; it says nothing there.
        wrapped = {"lam": match["lam"], "init": match["init"]} if match["simie"] == "True" else {}
        return match["editor"] + ("+simie" if wrapped else ""), match["model"], wrapped
    if program == "memit":
        # results/MEMIT/run_000/100_edits-case_7.json
        return file.parent.parent.name if file.parent.name.startswith("run_") else "", _model_of(file.parent), {}
    return "", _model_of(file.parent.parent.parent) if program == "nas" else "", {}


def _model_of(folder: Path) -> str:
    try:
        return str(mapping_of(json.loads((folder / "params.json").read_text(encoding="utf-8"))).get("model_name") or "")
    except (OSError, ValueError):
        return ""  # the folder was moved without it: the name can be given


def _twice(file: Path, cases: Sequence[Case]) -> list[Problem]:
    seen: set[tuple[str, int, str]] = set()
    twice = []
    for case in cases:
        if (case.record, case.step, case.protocol) in seen:
            twice.append(case.record)
        seen.add((case.record, case.step, case.protocol))
    if not twice:
        return []
    message = f"{file}  case_id {', '.join(twice[:5])} comes twice at the same step"
    return [Problem(code=StoreError.code, message=message, hint="are two runs in one file or folder?")]
