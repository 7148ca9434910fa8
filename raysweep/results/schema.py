"""The Arrow schemas of every table, with meaning, unit and presence of each column: the source of ``docs/columns.md``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from raysweep.errors import DamagedError, NewerFormatError
from raysweep.results.columns import KEY as _KEY
from raysweep.results.columns import VERSION_KEY, Column, TableSchema
from raysweep.results.columns import text_column as _text
from raysweep.rows import AnswerRow, BeliefRow, PointRow, ProbeRow, StatRow, TimingRow, TrainingRow, VerdictRow

# What rows about probes begin with, in both tables of them.
_PLACE = (
    _KEY,
    Column("step", pa.int64(), "records", "records edited so far when this was measured; 0 = the unedited model"),
    _text("record_id", "the record"),
    Column("edit_step", pa.int64(), "records", "step at which the record was written (from 1)"),
    Column("superseded_step", pa.int64(), "records",
           "step at which a later record with its prompt and another target came", "null = never superseded"),
    _text("probe_kind", "efficacy, paraphrase, locality or portability"),
    _text("probe_name", "tells probes of one kind apart; empty if there is nothing to tell"),
    Column("probe_index", pa.int64(), "", "position of the probe in its record, from 0"),
)  # fmt: skip
# By what was asked and never by time: a round that is written again is the same bytes.
_PLACE_ORDER = ("step", "edit_step", "record_id", "probe_index", "probe_kind", "probe_name")

PROBES = TableSchema(
    "probes", 1, "One measured value: one (record, probe, metric) at one step.", ProbeRow,
    (
        *_PLACE,
        _text("metric", "what was computed, such as token_match, agreement or target_logprob; with @ and a protocol behind it, "
              "such as normalised_match@wild-mirage:qa_inst/1, where that is not the main asking (docs/protocols.md)"),
        Column("value", pa.float64(), "of the metric",
               "the value; matches and agreements lie in 0..1; NaN = undefined, the logits were not finite",
               "null = the probe had no scorable position"),
        Column("n_tokens", pa.int64(), "tokens", "answer positions compared, or tokens written"),
        Column("prompt_digest", pa.string(), "16 hex digits", "hash of the probe's prompt and target"),
        _text("answer", "the model's arg-max tokens at the compared positions, decoded, or what it wrote"),
    ),
    (*_PLACE_ORDER, "metric"),
)  # fmt: skip

_UNSCORED = "null = of another kind of probe, or the logits were not finite"
ANSWERS = TableSchema(
    "answers", 1, "One answer that the model wrote freely, where `protocol.also` lets it (docs/protocols.md).", AnswerRow,
    (
        *_PLACE,
        _text("protocol", "the protocol with its prompt and version, such as wild-mirage:qa_inst/1"),
        _text("prompt", "the text that was sent"),
        _text("target", "the answer that was wanted"),
        _text("raw", "what was written under the published stop rule, decoded with special tokens"),
        _text("stop", "why it ended there: eos, string, length or non_finite"),
        Column("n_tokens", pa.int64(), "tokens", "how many tokens that is"),
        _text("answer", "raw, cleaned as published"),
        Column("affected", pa.bool_(), "", "a full stop stands inside the target: the published rule cuts even the right answer"),
        _text("raw_whole", "what was written where the target's own inner full stops end no answer", "null = the same as raw"),
        Column("normalised_match", pa.float64(), "0 or 1", "whether answer is the target, both normalised as for SQuAD", _UNSCORED),
        Column("whole_match", pa.float64(), "0 or 1", "the same of what raw_whole is", _UNSCORED),
        Column("same_answer", pa.float64(), "0 or 1", "of locality: whether the unedited model's tokens were written", _UNSCORED),
        Column("margin", pa.float64(), "logits", "by how much the largest logit was above the second, at the least",
               "null = none was finite"),
        Column("near_tie", pa.bool_(), "", "the margin is within rounding: another batch size may have given another answer"),
    ),
    (*_PLACE_ORDER, "protocol"),
)  # fmt: skip

VERDICTS = TableSchema(
    "verdicts", 1, "What a judge said of one stored answer (`raysweep judge`); beside the trials, in `_verdicts`.", VerdictRow,
    (
        *_PLACE,
        _text("protocol", "of the answer"),
        _text("question", "the probe's prompt as it was sent"),
        _text("target", "the answer that was wanted"),
        _text("answer", "the one that was judged, cleaned as published"),
        _text("model", "the judge"),
        Column("prompt_hash", pa.string(), "16 hex digits", "hash of the judge's prompt"),
        Column("verdict", pa.float64(), "0 or 1", "whether the answer states the target", "null = the judge gave no verdict"),
        _text("text", "what the judge replied"),
        _text("error", "why there is no verdict", "null = there is one"),
    ),
    (*_PLACE_ORDER, "protocol"),
)  # fmt: skip

STATS = TableSchema(
    "editor_stats", 1, "One number an editor reported about one call; never a time.", StatRow,
    (
        _KEY,
        Column("step", pa.int64(), "records", "step reached by the call"),
        _text("name", "the editor's name for the number, such as loss or residual"),
        Column("value", pa.float64(), "the editor's", "the number"),
    ),
    ("step", "name"),
)  # fmt: skip

TIMING = TableSchema(
    "timing", 1, "Where the seconds went; the only table that differs between two equal runs.", TimingRow,
    (
        _KEY,
        Column("step", pa.int64(), "records", "the round the seconds belong to"),
        _text("phase",
               "load, artifacts, base, edit, apply, immediate, round or snapshot; with _shared behind it, done once for all "
               "trials of an edit group, each of which has the seconds in full: do not add those up over trials"),
        Column("seconds", pa.float64(), "s", "wall-clock seconds"),
        Column("count", pa.int64(), "", "edits or records the seconds cover"),
    ),
    # In the order in which they were taken, since the seconds differ between equal runs anyway.
    (),
)  # fmt: skip

TRIALS = TableSchema(
    "trials", 2,
    "One row per arm and point, with the trial that stands there: a trial that stands at several has as many rows. "
    "`point.<key>` holds each swept key as well, and `spec.<path>` each resolved value.",
    None,
    (
        _KEY,
        _text("arm", "the arm that the latest plan puts the trial in"),
        _text("status", "RUNNING, INTERRUPTED, DONE, FAILED or STOPPED"),
        Column("step", pa.int64(), "records", "records edited when the status was written"),
        _text("error", "type and message of what ended the trial, or why it was stopped", "null unless FAILED or STOPPED"),
        Column("non_finite_step", pa.int64(), "records",
               "step at which a weight or a logit that is NaN or infinite was first seen", "null = never"),
        _text("study", "the kind of trial"),
        _text("model", "name of the language model"),
        _text("editor", "editor and its wrappers, such as memit+simie"),
        Column("seed", pa.int64(), "", "the trial's seed"),
        Column("batch_size", pa.int64(), "records", "records per call of the editor"),
        Column("last_round", pa.int64(), "records", "the step of the last planned round"),
        Column("group", pa.string(), "16 hex digits", "equal for trials that differ in nothing but the seed"),
        Column("point", pa.string(), "JSON", "the swept keys and their values"),
        Column("planned", pa.bool_(), "", "whether arm and point are the latest plan's; else they are what the trial was begun as"),
        _text("git_sha", "commit of the code", "null outside a git checkout"),
        Column("git_dirty", pa.bool_(), "", "whether it had uncommitted changes", "null outside a git checkout"),
        Column("raysweep", pa.string(), "version", "version of raysweep"),
        Column("python", pa.string(), "version", "version of Python"),
        Column("torch", pa.string(), "version", "version of torch", "null if it was not installed"),
        Column("transformers", pa.string(), "version", "version of transformers", "null if it was not installed"),
        Column("ray", pa.string(), "version", "version of Ray", "null if it was not installed"),
        _text("device", "the accelerator's name, its driver and what torch was built for, or cpu"),
        _text("cpu", "the processor's name"),
        Column("threads", pa.int64(), "", "CPU threads the numerics used"),
        _text("model_digest", "fingerprint of the pristine weights"),
        _text("data_digest", "hash of the dataset's content"),
    ),
    ("arm", "trial_key"),
)  # fmt: skip

BELIEFS = TableSchema(
    "beliefs", 1, "What a model makes of one question of an evaluation point, and what the ideal agent does (belief studies).",
    BeliefRow,
    (
        _KEY,
        Column("step", pa.int64(), "records",
               "records edited so far; 0 = the unedited model; where each edit stands alone, the record's position"),
        _text("record_id", "the record, and so the point"),
        Column("edit_step", pa.int64(), "records", "step at which the record is written (from 1)"),
        Column("inner_step", pa.int64(), "steps", "steps of the edit's own optimiser; 0 = the unedited model"),
        Column("last_step", pa.bool_(), "", "whether the edit was complete"),
        _text("question", "its name (docs/belief.md)"),
        _text("target", "the continuation that was asked for"),
        Column("probability", pa.float64(), "0..1",
               "the model's, of the target after the prompt; NaN = the logits were not finite, correct and exact mean nothing"),
        Column("expected", pa.float64(), "0..1", "the agent's at that step", "null where the agent is not asked"),
        Column("correct", pa.bool_(), "", "what the model wrote contains the target"),
        Column("exact", pa.bool_(), "", "what it wrote up to its first stop is the target"),
        _text("output", "what it wrote, greedily"),
    ),
    ("step", "edit_step", "record_id", "inner_step", "question"),
)  # fmt: skip

POINTS = TableSchema(
    "points", 2, "One evaluation point of a trial of a belief study.", PointRow,
    (
        _KEY,
        _text("record_id", "the record"),
        Column("edit_step", pa.int64(), "records", "step at which the record is written (from 1)"),
        _text("subject", "of the point's fact"),
        _text("relation", "of the point's fact"),
        _text("object", "true object of the point's fact"),
        _text("requested", "object that the update asks for"),
        Column("reinforces", pa.bool_(), "", "whether that is the true object already"),
        Column("has_relevant_property", pa.bool_(), "", "whether the subject also has the upstream relation"),
        Column("downstream_answer_changes", pa.bool_(), "", "whether the update changes the agent's answer downstream"),
        Column("point", pa.string(), "JSON", "the whole point, a line of points/2 (raysweep/belief/points/jsonl.py)"),
        _text("replaces", "the record in whose place this one came", "null = this one was planned"),
        _text("refusal", "why that record could not be edited", "null = this one was planned"),
        Column("testbed", pa.string(), "JSON",
               "the setting (spec), how many facts were passed over since they cannot be edited (passed_over), number of relations",
               "null = written before these columns"),
    ),
    ("edit_step", "record_id"),
)  # fmt: skip

TRAINING = TableSchema(
    "training", 1, "One number of the log kept while the model of a belief study was trained.", TrainingRow,
    (
        _KEY,
        Column("row", pa.int64(), "", "row of the log, from 0"),
        Column("n_tokens", pa.int64(), "tokens", "tokens trained on so far"),
        _text("name", "what was measured, such as train_loss or eval_acc"),
        Column("value", pa.float64(), "of the name", "the number"),
    ),
    ("row", "name"),
)  # fmt: skip

# What a trial's own folder may hold, and `trials`; verdicts come later, so no DONE.json lists them.
TABLES: tuple[TableSchema, ...] = (PROBES, ANSWERS, STATS, TIMING, BELIEFS, POINTS, TRAINING, TRIALS)

# (table, version) → how to bring a table of that version to the next one; each comes with a golden file.
# `trials` has no entry: it is always made anew from the folders, and never read back.
UPGRADES: dict[tuple[str, int], Callable[[pa.Table], pa.Table]] = {
    ("points", 1): lambda table: _with_nulls(table, "replaces", "refusal", "testbed"),
}


def _with_nulls(table: pa.Table, *names: str) -> pa.Table:
    """Return *table* with text columns that hold nothing yet."""
    for name in names:
        table = table.append_column(name, pa.nulls(len(table), pa.string()))
    return table


def version_of(schema: pa.Schema, table: TableSchema, where: str) -> int:
    """Return the version under which a file of *table* was written.

    Raises:
        DamagedError: the file is of another table.
        NewerFormatError: it is of a version this raysweep does not know.
    """
    tag = (schema.metadata or {}).get(VERSION_KEY, b"").decode()
    name, _, number = tag.partition("/")
    # The name of a file proves nothing: it may have been copied in from elsewhere.
    if name != table.name or not number.isdigit():
        raise DamagedError(f"{where} is not a {table.name} file (its schema is {tag or 'missing'!r})")
    if int(number) > table.version:
        raise NewerFormatError(
            f"{where} was written as {tag}; this raysweep reads up to {table.tag}", hint="upgrade raysweep"
        )
    return int(number)


def upgrade(data: pa.Table, table: TableSchema, version: int) -> pa.Table:
    """Bring *data*, written as *version* of *table*, to the current version, one step at a time."""
    for number in range(version, table.version):
        data = UPGRADES[table.name, number](data)
    # The cast also sets which columns may be null, and the tag of the current version.
    return data.cast(table.arrow)


def columns_markdown() -> str:
    """Return ``docs/columns.md``."""
    lines = [
        "# What the columns mean",
        "",
        "<!-- Written by `python -m raysweep.results.schema`; do not edit. -->",
        "",
        'Every table is Parquet (zstd); its file metadata carries `raysweep.schema = "<table>/<version>"`.',
    ]
    for table in (*TABLES, VERDICTS):
        lines += [
            "",
            f"## {table.tag}",
            "",
            table.doc,
            "",
            "| column | type | unit | meaning | null |",
            "|---|---|---|---|---|",
        ]
        lines += [f"| `{c.name}` | {c.type} | {c.unit} | {c.doc} | {c.presence or 'never'} |" for c in table.columns]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path("docs/columns.md").write_text(columns_markdown())
