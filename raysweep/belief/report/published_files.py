"""The files of the published code (Hase et al. 2024, commit 2a90e9b), by name, column and row, so that its own notebook opens them.

A row of ``editing_stats`` is one point at one step of its edit; of ``eval_stats`` one point and the unedited model; of the log one
evaluation during training. What is not defined, or not asked in this setting, is empty (published: NaN, in the log 0). What is
called ``p=95`` there is called after the setting's own ``points.target`` here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raysweep.belief.lm.architecture import SHAPES
from raysweep.belief.lm.asking import Reply
from raysweep.belief.lm.scoring import LogicalScoring, evaluation_summary, logical_coherence, scoring_of_points
from raysweep.belief.parity import ParitySpec
from raysweep.belief.points.types import (
    AGENT_STATES,
    MODAL,
    OBJECT_ROLES,
    ORIGINAL,
    REQUESTED,
    SAME_SAME,
    WATCHED_FACTS,
    EvalPoint,
    TargetProbabilities,
)
from raysweep.belief.report.metrics import parse_labels, truth_probability
from raysweep.belief.spec import BeliefSpec

Row = dict[str, str | int | float | bool | None]
Replies = Mapping[str, Reply]
Steps = Mapping[int, Replies]
"""Replies by step of an edit, 0 = before it, then by question."""


@dataclass(frozen=True, slots=True)
class CsvFile:
    """One CSV file: where it lies below the folder of a run, its columns in order, and its rows."""

    path: str
    columns: Sequence[str]
    rows: Iterable[Row]


_TF = ("A_TF_case", "B_TF_case", "A_and_B_case", "B_and_A_case", "A_or_B_case", "not_A_case")
_SCORED = ("o_given_s_r", *_TF)
_EDITING = tuple(f"editing_{name}_{obj}" for name in WATCHED_FACTS for obj in OBJECT_ROLES)
_CASES = (*_SCORED, "A_sentence", "new_fact_case", *_EDITING)
_LOGICAL = ("TF_coherence", "multiplication", "commutation", "disjunction", "negation")
_FLAGS = (
    "diff_r_is_dependent_rel", "same_r_is_dependent_rel", "all_cases_independent", "using_diff_s_with_both_r_s",
    "new_fact_reinforces", "downstream_answer_changes",
)  # fmt: skip
_PROBABILITIES = TargetProbabilities._fields[:7]
LOG_COLUMNS = (
    "epoch", "n_tokens", "n_sentences", "step", "train_loss", "eval_loss", "o_given_s_r_loss", "eval_acc", "LR", "seq_loss",
    "o_given_s_r_acc", "A_TF_case_acc", "A_and_B_case_acc", "A_or_B_case_acc", "B_TF_case_acc", "B_and_A_case_acc",
    "not_A_case_acc", *(f"{name}_error" for name in _PROBABILITIES),
    "commutation_loss", "disjunction_loss", "multiplication_loss", "negation_loss", "TF_coherence_loss",
)  # fmt: skip


def experiment_name(spec: BeliefSpec, model: str, relations: int) -> str:
    """Return the published name of a run, which its files carry.

    Args:
        spec: the setting.
        model: name of the model, for a size that has no published name.
        relations: relations of the graph.
    """
    recipe, corpus, generative = spec.pretrain, spec.corpus, spec.generative
    size = next((name for name, shape in SHAPES.items() if recipe is not None and shape == recipe.model), model)
    # The published file name lists the sentence types by one letter each.
    marks = {"TF": corpus.true_false, "a": corpus.conjunctions, "o": corpus.disjunctions, "n": corpus.negations}
    marks |= {"t": corpus.implications, "only": not corpus.atomic}
    types = "-".join(mark for mark, on in marks.items() if on)
    # A setting that trains no model has neither.
    budget, batch = (recipe.tokens, recipe.batch * recipe.accumulation) if recipe is not None else (0, 0)
    return (
        f"{size.rpartition('/')[2]}_clm_{corpus.num_atomic_facts}-facts_{relations}-rels_tb-{budget:.1e}_bs-{batch}"
        f"_mgtp-{generative.min_true_prob:.1f}_s-{corpus.max_sentences_per_doc}_b-{generative.samples}"
        f"_c-{corpus.connective_instances_per_subject}{f'_{types}' if types else ''}"
        f"_ho-{corpus.homogeneous}_he-{corpus.heterogeneous}_sd{spec.seed}"
    )


def published_case(question: str) -> str:
    """Return the published name of a question.

    >>> published_case("editing_same_s_diff_r_new_modal_obj"), published_case("A_TF_case")
    ('editing_same_s_diff_r_fact_new_modal_obj', 'A_TF_case')
    """
    # The published names have "_fact" before the object.
    ends = (f"_{obj}" for obj in OBJECT_ROLES if question in _EDITING and question.endswith(f"_{obj}"))
    return next((f"{question.removesuffix(end)}_fact{end}" for end in ends), question)


def run_files(
    name: str,
    spec: BeliefSpec,
    points: Sequence[EvalPoint],
    steps: Sequence[Steps],
    scoring: Sequence[LogicalScoring],
    log: Sequence[Mapping[str, float]],
) -> list[CsvFile]:
    """Return the files of one run.

    Args:
        name: of :func:`experiment_name`.
        spec: its setting.
        points: with edits.
        steps: what was answered about each.
        scoring: how each is scored. The published labels (C2) also decide which way a probability is turned to p(true).
        log: of the model's training; empty if there is none.
    """
    # The published files are in the order of the ids.
    order = sorted(range(len(points)), key=lambda i: points[i].id)
    points, steps, scoring = [points[i] for i in order], [steps[i] for i in order], [scoring[i] for i in order]
    rows = list(editing_rows(points, steps, scoring, spec.points.target))
    pristine = [by_step[0] for by_step in steps]
    row = evaluation_summary(points, pristine, parity=spec.parity)
    csv_files = [
        CsvFile(f"outputs/editing_stats_{name}.csv", _columns(rows), rows),
        CsvFile(f"outputs/editing_summary_{name}.csv", ("metric", "pre-edit", "post-edit"), _editing_summary(rows)),
    ]
    evaluated = list(eval_rows(points, pristine, spec.parity))
    csv_files += [
        CsvFile(f"outputs/eval_stats_{name}.csv", _columns(evaluated), evaluated),
        CsvFile(f"outputs/eval_summary_{name}.csv", LOG_COLUMNS, [log_row(row)]),
    ]
    if log:
        csv_files.append(CsvFile(f"training_logs/log_{name}.csv", LOG_COLUMNS, map(log_row, log)))
    return csv_files


def _columns(rows: Sequence[Row]) -> list[str]:
    """Return every column of *rows*, each behind those that precede it in the first row that has it."""
    columns: list[str] = []
    for keys in dict.fromkeys(tuple(row) for row in rows):
        at = 0  # where a new column goes
        for key in keys:
            if key in columns:
                at = columns.index(key) + 1
            else:
                columns.insert(at, key)
                at += 1
    return columns


# ------------------------------------------------------------------------------------------------------- edits


def editing_rows(
    points: Sequence[EvalPoint], steps: Sequence[Steps], scoring: Sequence[LogicalScoring], target: float = 0.95
) -> Iterator[Row]:
    """Yield the rows of ``editing_stats``: point by point, step by step.

    Args:
        points: with edits.
        steps: what was answered about each.
        scoring: how each is scored.
        target: posterior that the requested update reaches (``points.target``).
    """
    for point, by_step, point_scoring in zip(points, steps, scoring, strict=True):
        # Worked out once per point: they do not change from step to step.
        about, targets, last = _about(point), _targets(point, target), max(by_step)
        for step, replies in sorted(by_step.items()):
            ended = {"last_step": step == last if step else None}
            yield {"step": step, **about, **_answers(point, replies, point_scoring), **targets, **ended}


def _about(point: EvalPoint) -> Row:
    """Return what a row says of the point, whatever was answered."""
    subject, relation, true = point.names
    objects = {name: {o: point.questions[f"editing_{name}_{o}"].target for o in OBJECT_ROLES} for name in WATCHED_FACTS}
    row: Row = {
        "id": point.id, "e1": subject, "rel": relation, "e2": true, "requested_obj": objects[SAME_SAME][REQUESTED],
        "known_entity": point.known, "has_relevant_property": point.has_relevant_property,
        **{name: getattr(point.flags, name) for name in _FLAGS},
        "same_s_same_r_rel": relation,
    }  # fmt: skip
    # A watched fact's names come from its prompt, "subject relation", of which one part is known.
    other = _prompt(point, "same_s_diff_r").removeprefix(f"{subject} ")
    for name, of_relation in (("diff_s_same_r", relation), ("same_s_diff_r", other), ("diff_s_diff_r", other)):
        row |= {f"{name}_subj": _prompt(point, name).removesuffix(f" {of_relation}"), f"{name}_rel": of_relation}
        row[f"{name}_obj"] = objects[name][ORIGINAL]
    row["same_s_same_r_obj"] = objects[SAME_SAME][ORIGINAL]
    return row | {f"{name}_new_modal_obj": objects[name][MODAL] for name in WATCHED_FACTS}


def _prompt(point: EvalPoint, name: str) -> str:
    return point.questions[f"editing_{name}_{ORIGINAL}"].prompt


def _answers(point: EvalPoint, replies: Replies, scoring: LogicalScoring) -> Row:
    """Return accuracies, probabilities (of the six true/false cases: p("true")), logical errors and outputs."""
    cases = [name for name in _CASES if name in replies]
    # Columns stand in the published order: accuracies, probabilities, errors, outputs.
    row: Row = {f"{published_case(name)}_acc": replies[name].correct for name in cases}
    for name in cases:
        p = replies[name].probability
        row[f"{published_case(name)}_prob"] = _p_true(p, scoring.labels[name]) if name in _TF else p
    errors = logical_coherence([point], [replies], scoring=[scoring])
    row |= {name: float(errors[name][0]) for name in _LOGICAL if name in errors}
    return row | {f"{published_case(name)}_output": replies[name].output for name in cases}


def _p_true(probability: float, label: str) -> float:
    return float(truth_probability(np.array([probability]), parse_labels([label]))[0])


def _targets(point: EvalPoint, target: float) -> Row:
    """Return what is to be believed: of the point's fact before the edit, of each watched object in each state."""
    row: Row = {}
    if "o_given_s_r" in point.questions:
        values = point.targets._asdict()
        row |= {f"o_given_s_r_{AGENT_STATES['pre']}_{name}": values[name] for name in _PROBABILITIES}
    for name, watch in (point.watched or {}).items():
        for state, objects in watch.targets.items():
            # The published name says 95 whatever the target was; here it is the setting's own.
            column = f"post_update_probs_p={round(100 * target, 6):g}" if state == "target" else AGENT_STATES[state]
            for obj, numbers in objects.items():
                case = published_case(f"editing_{name}_{obj}")
                row |= {f"{case}_{column}_{key}": value for key, value in numbers._asdict().items()}
    return row


def _editing_summary(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the mean of each accuracy and logical error before and after the edits."""
    before = [row for row in rows if row["step"] == 0]
    after = [row for row in rows if row["last_step"]]
    ends = ("o_given_s_r_acc", "same_s_same_r_fact_requested_obj_acc", "new_modal_obj_acc", "GT_obj_acc")
    for name in _columns(rows):
        if name.endswith(ends) or name in _LOGICAL:
            yield {"metric": name, "pre-edit": _mean(before, name), "post-edit": _mean(after, name)}


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [float(value) for row in rows if (value := row.get(name)) is not None]
    return sum(values) / len(values) if values else None


# ------------------------------------------------------------------------------------------- the unedited model


def eval_rows(points: Sequence[EvalPoint], replies: Sequence[Replies], parity: ParitySpec) -> Iterator[Row]:
    """Yield the rows of ``eval_stats``: accuracy and "seen" of each scored case, signed errors, logical errors (own labels, C1).

    Args:
        points: that were asked about.
        replies: of the unedited model, point by point.
        parity: published metrics.
    """
    # The published evaluation of a model that is not edited gives each point its own labels.
    scorings = scoring_of_points(points, parity.model_copy(update={"labels_of_first_point": False}))
    for point, reply, scoring in zip(points, replies, scorings, strict=True):
        cases = [name for name in _SCORED if name in reply]
        row: Row = {"id": point.id, "has_relevant_property": point.has_relevant_property}
        row |= {f"{name}_acc": reply[name].correct for name in cases}
        row |= {f"{name}_seen": point.questions[name].seen for name in cases}
        if "o_given_s_r" in reply:
            p, targets = reply["o_given_s_r"].probability, point.targets._asdict()
            row |= {f"{n}_error": None if targets[n] is None else p - targets[n] for n in _PROBABILITIES}
        errors = logical_coherence([point], [reply], scoring=[scoring])
        yield row | {name: float(errors[name][0]) for name in _LOGICAL if name in errors}


def log_row(row: Mapping[str, float]) -> Row:
    """Return a row of our log as one of the published log."""
    published: Row = {name: row[name] for name in LOG_COLUMNS if name in row}
    return published | ({"seq_loss": row["eval_loss"]} if "eval_loss" in row else {})
