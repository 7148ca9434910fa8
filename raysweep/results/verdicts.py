"""Verdicts of a judge on stored answers: beside the trials, in files of their own, gone on with where they broke off.

``_verdicts/<judge>/<trial key>.parquet`` holds one row per judged answer, ``_verdicts/<judge>/judge.json`` the judge's model and
prompt. No file of a trial is touched, so no digest that ``DONE.json`` names changes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysweep.errors import DamagedError
from raysweep.hashing import digest, text_digest
from raysweep.judge import PROMPT, Case, Judge, Verdict
from raysweep.results.folder import Folder
from raysweep.results.fragments import read_fragments
from raysweep.results.schema import ANSWERS, VERDICTS, version_of
from raysweep.results.tablefiles import encoded
from raysweep.results.tables import Sweep
from raysweep.rows import AnswerRow, VerdictRow

VERDICT_FOLDER = "_verdicts"
_FORMAT = "1"
_CHUNK = 64  # cases between two looks at the disk: what a broken-off run has to ask again, at most
_HOPELESS = 20  # cases in a row without a verdict, after which the rest is left for another time
_PLACE = ("step", "record_id", "probe_index", "protocol")
Place = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of judging a sweep.

    Attributes:
        answers: how many there are to judge.
        asked: how many cases the judge was asked now; equal ones count once.
        missing: answers without a verdict.
        error: why the last of them has none.
    """

    answers: int
    asked: int
    missing: int
    error: str


def judge_folder(judge: Judge) -> str:
    """Return the folder of *judge*, whose name stands for its model and its prompt, not for where it is asked."""
    return f"{VERDICT_FOLDER}/{digest({'model': judge.model, 'prompt': judge.prompt_hash})}"


def judge_answers(
    sweep: Sweep,
    judge: Judge,
    *,
    protocol: str = "",
    step: int | None = None,
    parallel: int = 8,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Judged:
    """Let *judge* look at every stored answer of *sweep* that it has not judged yet.

    Cases that are equal in question, target and answer are asked once. What is judged is written every few dozen cases.

    Args:
        sweep: its answers about records are judged; locality has no target to judge by.
        judge: asked at temperature 0.
        protocol: only answers of the protocol with this label; empty = of all.
        step: only those of this round; None = of all.
        parallel: cases at once.
        report: told how many of how many cases were asked.
    """
    folder, where = sweep.store.folder, judge_folder(judge)
    about = {"format": _FORMAT, "model": judge.model, "prompt_hash": judge.prompt_hash, "prompt": PROMPT}
    folder.write_json(f"{where}/judge.json", about)
    answers = {key: _answers(sweep, key, protocol, step) for key in sweep.keys}
    kept = {key: _kept(folder, where, key) for key in answers}
    known = {
        _case(row): Verdict(row.verdict, row.text)
        for rows in kept.values()
        for row in rows.values()
        if row.verdict is not None
    }
    # In the order of the answers, each once: the same sweep asks the same cases in the same order.
    open_cases = list(dict.fromkeys(c for rows in answers.values() for c in map(_case, rows) if c not in known))
    # What failed is written too, with its reason, so that a reader sees a gap and not an answer that nobody looked at.
    asked, errors = 0, dict[Case, Verdict]()
    for verdicts in _in_chunks(open_cases, judge, parallel):
        asked += len(verdicts)
        known |= {case: v for case, v in verdicts.items() if v.value is not None}
        errors |= {case: v for case, v in verdicts.items() if v.value is None}
        _write(folder, where, judge, answers, kept, {**errors, **known})
        report(asked, len(open_cases))
    if not open_cases:
        # Rounds that were measured since may hold new answers to cases that were judged before.
        _write(folder, where, judge, answers, kept, known)
    missing = sum(_case(row) not in known for rows in answers.values() for row in rows)
    last = next((v.error for v in reversed(errors.values())), "")
    return Judged(sum(map(len, answers.values())), asked, missing, last)


def _in_chunks(cases: Sequence[Case], judge: Judge, parallel: int) -> Iterator[dict[Case, Verdict]]:
    """Yield the verdicts on *cases*, a few dozen at a time; end early where the judge answers nothing any more."""
    failures = 0
    with ThreadPoolExecutor(parallel) as pool:
        for begin in range(0, len(cases), _CHUNK):
            chunk = cases[begin : begin + _CHUNK]
            verdicts = dict(zip(chunk, pool.map(judge.ask, chunk), strict=True))
            yield verdicts
            # Counted in a row: a judge that fails now and then is alive, one that is gone fails at everything.
            for verdict in verdicts.values():
                failures = failures + 1 if verdict.value is None else 0
            if failures >= _HOPELESS:
                return


def verdicts_of(folder: Folder, where: str, key: str) -> pa.Table:
    """Return the verdicts that the judge in *where* gave on answers of the trial *key*; none is an empty table.

    Raises:
        DamagedError: the file cannot be read.
    """
    name = f"{where}/{key}.parquet"
    if not folder.exists(name):
        return VERDICTS.arrow.empty_table()
    try:
        table = pq.read_table(io.BytesIO(folder.read(name)))
        version_of(table.schema, VERDICTS, folder.path(name))
        return table.cast(VERDICTS.arrow)
    except (pa.ArrowException, OSError, ValueError) as error:
        hint = "delete it; raysweep judge makes it anew"
        raise DamagedError(f"{folder.path(name)} is truncated or damaged ({error})", hint=hint) from error


def judges(folder: Folder) -> dict[str, str]:
    """Return the judges that have looked at the answers of a sweep: the folder of each, by its model's name.

    One with another prompt than today's has the prompt's hash behind its name, as ``model@hash``.
    """
    found = {}
    for where in folder.folders(VERDICT_FOLDER):
        about: Mapping[str, object] = json.loads(folder.read(f"{where}/judge.json"))
        model, prompt = about["model"], about["prompt_hash"]
        found[str(model) if prompt == text_digest(PROMPT) else f"{model}@{prompt}"] = where
    return found


def _answers(sweep: Sweep, key: str, protocol: str, step: int | None) -> list[AnswerRow]:
    """Return the answers of the trial *key* that have a target to be judged by."""
    table = read_fragments(sweep.store, ANSWERS, sweep.store.fragments(ANSWERS, key))
    table = table.filter(pc.is_valid(table["normalised_match"]))
    if protocol:
        table = table.filter(pc.equal(table["protocol"], protocol))
    if step is not None:
        table = table.filter(pc.equal(table["step"], step))
    return [AnswerRow(**row) for row in table.to_pylist()]


def _kept(folder: Folder, where: str, key: str) -> dict[Place, VerdictRow]:
    rows = [VerdictRow(**row) for row in verdicts_of(folder, where, key).to_pylist()]
    return {_place(row): row for row in rows}


def _place(row: AnswerRow | VerdictRow) -> Place:
    return tuple(getattr(row, name) for name in _PLACE)


def _case(row: AnswerRow | VerdictRow) -> Case:
    return Case(row.prompt if isinstance(row, AnswerRow) else row.question, row.target, row.answer)


def _write(
    folder: Folder,
    where: str,
    judge: Judge,
    answers: Mapping[str, Sequence[AnswerRow]],
    kept: Mapping[str, dict[Place, VerdictRow]],
    verdicts: Mapping[Case, Verdict],
) -> None:
    """Write the files of the trials of which something is known that is not on the disk."""
    for key, rows in answers.items():
        now = {_place(row): _verdict_row(row, judge, verdicts[_case(row)]) for row in rows if _case(row) in verdicts}
        # A verdict stays; replaced is what had none, or is of an answer that was there before the trial was made afresh.
        new = {place: row for place, row in now.items() if not _stands(kept[key].get(place), row)}
        if any(kept[key].get(place) != row for place, row in new.items()):
            # The whole file again: it appears complete or not at all, and rows stay in the schema's order.
            kept[key].update(new)
            folder.write(f"{where}/{key}.parquet", encoded(VERDICTS, list(kept[key].values())))


def _stands(kept: VerdictRow | None, now: VerdictRow) -> bool:
    return kept is not None and kept.verdict is not None and _case(kept) == _case(now)


def _verdict_row(row: AnswerRow, judge: Judge, verdict: Verdict) -> VerdictRow:
    place = {name: getattr(row, name) for name in VerdictRow.__dataclass_fields__ if hasattr(row, name)}
    return VerdictRow(
        **place,
        question=row.prompt,
        model=judge.model,
        prompt_hash=judge.prompt_hash,
        verdict=verdict.value,
        text=verdict.text,
        error=verdict.error or None,
    )
