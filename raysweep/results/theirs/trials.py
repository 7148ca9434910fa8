"""Cases of another program's files → finished trials in a results folder, marked as imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raysweep import __version__
from raysweep.config.editor_schema import EditorSpec, UnreadConfig
from raysweep.config.schema import DataSpec, ModelSpec, ProtocolSpec, TrialSpec
from raysweep.hashing import digest, file_digest, text_digest
from raysweep.results.store import ResultStore
from raysweep.results.theirs.cases import Case, Value
from raysweep.rows import EvalRound, ProbeRow


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRun:
    """One run of another program, all of it measured in one way.

    Attributes:
        program: ``easyedit``, ``simie``, ``memit`` or ``nas``.
        files: where it was read.
        editor: their name of the method.
        model: the model's name.
        data: the dataset's name; empty = not known.
        settings: what else the files' names say, such as SimIE's λ.
        cases: its records, in the order in which they were written.
        immediate: each was measured right after its own edit; else all after the last.
    """

    program: str
    files: tuple[Path, ...]
    editor: str
    model: str
    data: str
    settings: dict[str, str]
    cases: tuple[Case, ...]
    immediate: bool

    @property
    def protocol(self) -> str:
        """Id of how its values were measured: values of different ids are never set against each other."""
        (one,) = {case.protocol for case in self.cases}
        return f"{self.program}: {one}{', each right after its edit' if self.immediate else ''}"

    @property
    def arm(self) -> str:
        """What the trial is called: method, settings, program, and how its rewrites were scored."""
        settings = "".join(f" {key}={value}" for key, value in self.settings.items())
        scored = self.protocol.partition("+")[0]
        return f"{self.editor.lower()}{settings} ({scored}{', at once' if self.immediate else ''})"


def spec(run: ImportedRun) -> TrialSpec:
    """Return a trial that has *run*'s files in its key."""
    # By content and not by path: the same files imported from elsewhere are the same trial.
    known = {"program": run.program, **run.settings, "files": [file_digest(f) for f in run.files]}
    steps = sorted({case.step or len(run.cases) for case in run.cases})
    rounds = tuple(([0] if any(case.before for case in run.cases) else []) + steps)
    config = UnreadConfig.model_validate({"imported": known})
    return TrialSpec(
        study="lifelong",
        model=ModelSpec(name=run.model),
        data=DataSpec(name=run.data or "unknown", digest=digest(known["files"]), size=len(run.cases), order="file"),
        # Not validated, since a method of theirs may have no editor here.
        editor=EditorSpec.model_construct(name=run.editor.lower(), config=config, wrap=()),
        protocol=ProtocolSpec(rounds=rounds, immediate=run.immediate, measured_by=run.protocol),
        seed=0,
    )


def write(run: ImportedRun, store: ResultStore, now: str) -> TrialSpec:
    """Write *run* into *store* as a finished trial, marked as imported at the time *now*; return the trial."""
    trial = spec(run)
    # Of the program, the machine and the versions that measured nothing is known: the files do not say.
    machine = dict.fromkeys(("python", "torch", "transformers", "device", "cpu"), "not known")
    source = {
        "raysweep": __version__,
        **machine,
        "imported_from": run.program,
        "files": [str(f) for f in run.files],
        "protocol": run.protocol,
    }
    # Imported again, a trial takes its own place and does not go on from what is stored.
    store.forget(*({trial.key} & set(store.keys())))
    store.begin(trial, arm=run.arm, point={}, provenance={"run": source, "session": {"began": now}})
    for step in trial.protocol.rounds:
        store.write_round(trial.key, EvalRound(step=step, rows=rows(run, trial, step)))
    store.finish(trial.key, step=trial.protocol.rounds[-1])
    return trial


def rows(run: ImportedRun, trial: TrialSpec, step: int) -> list[ProbeRow]:
    """Return what *run* measured up to the round at *step*."""
    found: list[ProbeRow] = []
    order: dict[str, int] = {}
    for case in run.cases:
        # A record that is measured at several steps was still written only once.
        edit_step = order.setdefault(case.record, len(order) + 1)
        if step == 0:
            found += [_row(trial, case, value, 0, edit_step) for value in case.before]
        elif (case.step or len(run.cases)) == step:
            # As in our own rows: what is measured right after its edit has the step of that edit.
            at = edit_step if run.immediate else step
            found += [_row(trial, case, value, at, edit_step) for value in case.after]
    return found


def _row(trial: TrialSpec, case: Case, value: Value, step: int, edit_step: int) -> ProbeRow:
    # Their files say neither how many tokens were compared nor which record a later one contradicts.
    return ProbeRow(
        trial_key=trial.key, step=step, record_id=case.record, edit_step=edit_step, superseded_step=None,
        probe_kind=value.kind, probe_name=value.name, probe_index=value.index, metric=value.metric, value=value.value,
        n_tokens=0, prompt_digest=text_digest(case.target), answer=value.text,
    )  # fmt: skip


def plan_of(
    sweep: str, runs: Sequence[tuple[ImportedRun, TrialSpec]], earlier: Sequence[dict[str, object]]
) -> dict[str, object]:
    """Return ``plan.json`` of an imported sweep: *earlier* trials and those of *runs*."""
    keys = {trial.key for _, trial in runs}
    kept = [entry for entry in earlier if entry["key"] not in keys]
    taken = {entry["arm"] for entry in kept}
    new = []
    for run, trial in runs:
        # Two runs of one name (two files of one method) are two arms: nothing says that they differ in their seed alone.
        arm = run.arm if run.arm not in taken else f"{run.arm} {trial.key[:6]}"
        taken.add(arm)
        new.append({"key": trial.key, "arm": arm, "point": {}, "seed": 0, "rounds": list(trial.protocol.rounds)})
    return {"sweep": sweep, "study": "lifelong", "search": {}, "trials": [*kept, *new]}
