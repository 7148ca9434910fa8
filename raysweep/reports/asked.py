"""Numbers of one protocol beside the main asking, in the columns that the main asking's have (``--protocol``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from raysweep import intervals
from raysweep.errors import SpecError, nearest
from raysweep.protocols import JUDGED, Selection
from raysweep.records import ProbeKind
from raysweep.reports.views import SummaryRow
from raysweep.results.fragments import read_fragments
from raysweep.results.schema import ANSWERS
from raysweep.results.tables import Sweep
from raysweep.results.verdicts import judges, verdicts_of
from raysweep.summarize import VIEWS, estimate, matrix

_PARTS = ("rel", "gen", "loc")
# What each kind of probe is shown by under the main asking: the numbers of a protocol take these places.
_SHOWN = {kind: metric for view in (*_PARTS, "port") for kind, metric in [VIEWS[view]]}


def chosen(text: str, sweeps: Sequence[Sweep]) -> Selection | None:
    """Return the protocol and number that *text* (``--protocol``) names; None: the main asking.

    Raises:
        SpecError: there is no such protocol, or no trial of *sweeps* was asked under it.
    """
    if text in ("", "teacher_forced"):
        return None
    selection = Selection.parse(text)
    labels = sorted({label for sweep in sweeps for label in _labels(sweep)})
    of_it = [label for label in labels if label.partition("/")[0].partition(":")[0] == selection.protocol.id]
    # A prompt that was not named is the one that was asked, where there is one only.
    if len(of_it) == 1 and ":" not in text.partition("+")[0]:
        prompt = of_it[0].partition("/")[0].partition(":")[2]
        selection = replace(selection, prompt=prompt or selection.prompt)
    # An empty table would look like a protocol under which nothing was right.
    if selection.label not in labels:
        asked = (
            f"asked were: {', '.join(labels)}" if labels else "no trial was asked under any; protocol.also names them"
        )
        raise SpecError(f"nothing was measured under {selection.label}", hint=asked)
    return _with_judge(selection, sweeps) if selection.scorer == JUDGED else selection


def _labels(sweep: Sweep) -> set[str]:
    specs = (sweep.records[key].about()[1] for key in sweep.keys)
    return {one.label for spec in specs for one in spec.protocol.also}


def renamed(key: str, probes: pa.Table, *, sweep: Sweep, selection: Selection) -> pa.Table:
    """Return what *selection* names of the trial *key*, under the names of the main asking's metrics.

    Args:
        key: of the trial.
        probes: its rows of ``probes``, the columns that summaries need.
        sweep: where verdicts are looked for.
        selection: the protocol and the number.
    """
    # First the few rows of the protocol: texts may be read as codes, and those of all rows would take most of the memory.
    of_it = pc.ends_with(probes["metric"].cast(pa.string()), f"@{selection.label}")
    probes = _plain(probes.filter(of_it))
    if selection.scorer == JUDGED:
        probes = pa.concat_tables([probes, _judged(key, probes.schema, sweep, selection)])
    kind, wanted, shown = probes["probe_kind"], pa.scalar("", pa.string()), pa.scalar("", pa.string())
    for name, metric in _SHOWN.items():
        of_kind = pc.equal(kind, str(name))
        wanted = pc.if_else(of_kind, selection.metric(str(name)), wanted)
        shown = pc.if_else(of_kind, metric, shown)
    # Renamed, so that everything from here on (means, intervals, differences) is the main asking's own code.
    place = probes.schema.get_field_index("metric")
    keep = pc.equal(probes["metric"], wanted)
    return probes.set_column(place, probes.schema.field(place), shown).filter(keep)


def _plain(table: pa.Table) -> pa.Table:
    """Return *table* with its texts as texts."""
    kinds = [(f, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in table.schema]
    return table.cast(pa.schema([pa.field(f.name, kind, f.nullable) for f, kind in kinds]))


def _judged(key: str, schema: pa.Schema, sweep: Sweep, selection: Selection) -> pa.Table:
    """Return the verdicts on answers of the trial *key* as rows of ``probes``; answers without a verdict are missing values."""
    table = verdicts_of(sweep.store.folder, judges(sweep.store.folder)[selection.judge], key)
    table = table.filter(pc.equal(table["protocol"], selection.label))
    # verdicts hold the place of their answer, so they are rows of probes but for two columns
    columns = {"value": table["verdict"], "metric": pa.array([selection.metric("")] * len(table), pa.string())}
    return pa.table(
        [columns.get(name, table[name] if name in table.column_names else None) for name in schema.names], schema=schema
    )


def _with_judge(selection: Selection, sweeps: Sequence[Sweep]) -> Selection:
    """Return *selection* with the judge whose verdicts are shown.

    Raises:
        SpecError: there is none, or several and none is named.
    """
    known = sorted({model for sweep in sweeps for model in judges(sweep.store.folder)})
    lacking = [sweep.name for sweep in sweeps if not judges(sweep.store.folder)]
    if lacking:
        raise SpecError(
            f"no judge has looked at the answers of {', '.join(lacking)}",
            hint="raysweep judge SWEEP --url URL --model MODEL",
        )
    if selection.judge and selection.judge not in known:
        raise SpecError(f"no judge is called '{selection.judge}'", hint=nearest(selection.judge, known))
    if not selection.judge and len(known) > 1:
        raise SpecError(f"{len(known)} judges have looked at the answers", hint=f"name one: +judged={known[0]}")
    return replace(selection, judge=selection.judge or known[0])


def with_harmonic(lines: Sequence[SummaryRow], selection: Selection) -> list[SummaryRow]:
    """Return *lines* with the harmonic mean of Rel, Gen and Loc, where the protocol is the one that reports it."""
    if not selection.protocol.needs_true:
        return list(lines)
    out = []
    for line in lines:
        values = [t.measured[line.phase, line.step] for t in line.trials]
        if not all(view in line.cells for view in _PARTS):
            out.append(line)
            continue
        shares = [matrix([of_trial.get(view, {}) for of_trial in values]) for view in _PARTS]
        # Geo's interval wants records that all three have; so does this one.
        if len({share.shape for share in shares}) > 1:
            out.append(line)
            continue
        cell = estimate(intervals.of_shares(_harmonic, shares), len(shares[0]))
        out.append(replace(line, cells={**line.cells, "harmonic": cell}))
    return out


def _harmonic(*shares: float) -> float:
    return len(shares) / sum(1.0 / share for share in shares) if min(shares) > 0.0 else 0.0


def notes(sweep: Sweep, selection: Selection) -> list[str]:
    """Return what a reader must know of the answers behind the numbers of *selection*."""
    if not selection.protocol.max_tokens:
        return []
    names = [name for key in sweep.keys for name in sweep.store.fragments(ANSWERS, key)]
    columns = ["protocol", "probe_kind", "record_id", "affected", "near_tie"]
    answers = read_fragments(sweep.store, ANSWERS, names, columns=columns)
    answers = answers.filter(pc.equal(answers["protocol"], selection.label))
    # locality compares with what was written before, whatever its target is
    scored = answers.filter(pc.not_equal(answers["probe_kind"], str(ProbeKind.LOCALITY)))
    affected = set(scored.filter(scored["affected"])["record_id"].to_pylist())
    every = set(scored["record_id"].to_pylist())
    out = _unjudged(sweep, selection) if selection.scorer == JUDGED else []
    if affected:
        what = f"records with a full stop inside a target: {len(affected)} of {len(every)}"
        out.append(f"{what}; the published rule cuts even the right answer there, +whole_match lets it pass")
    close = int(pc.sum(answers["near_tie"]).as_py() or 0)
    if close:
        out.append(f"answers with a margin within rounding, which another batch may flip: {close} of {len(answers)}")
    return out


def _unjudged(sweep: Sweep, selection: Selection) -> list[str]:
    """Return how many of the answers that can be judged have no verdict; none where all have."""
    where = judges(sweep.store.folder)[selection.judge]
    given = wanted = 0
    for key in sweep.keys:
        names = sweep.store.fragments(ANSWERS, key)
        answers = read_fragments(sweep.store, ANSWERS, names, columns=["protocol", "normalised_match"])
        mine = answers.filter(pc.equal(answers["protocol"], selection.label))
        verdicts = verdicts_of(sweep.store.folder, where, key)
        wanted += len(mine) - mine["normalised_match"].null_count
        given += int(
            pc.sum(pc.and_(pc.is_valid(verdicts["verdict"]), pc.equal(verdicts["protocol"], selection.label))).as_py()
            or 0
        )
    lacking = f"answers without a verdict, which count as missing: {wanted - given} of {wanted}"
    return [f"{lacking}; raysweep judge goes on"] if given < wanted else []


def refuse_immediate(phase: str | None, selection: Selection | None) -> None:
    """Refuse the immediate phase of a protocol beside the main asking.

    Raises:
        SpecError: it is asked for.
    """
    if selection is not None and phase == "immediate":
        message = f"{selection.protocol.id} is asked at rounds only, never right after each edit"
        raise SpecError(message, hint="leave out --phase")
