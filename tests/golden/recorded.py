"""Read what was recorded from the published implementation, and rebuild its runs with our editors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from raysweep.artifacts import Artifact
from raysweep.config.schema import EditorSpec, WrapSpec
from raysweep.editors.base import AnyEditor, EditStep
from raysweep.editors.build import build_editor
from raysweep.evals.scoring import Scores
from raysweep.models.ledger import Ledger
from raysweep.models.lm import LanguageModel
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.testing.fixtures import load_folder

HERE = Path(__file__).parent / "recorded"
FOLDERS = {"tiny-gpt2": "tiny-gpt2-xl", "tiny-llama": "tiny-llama"}


@lru_cache(maxsize=2)
def model(name: str) -> LanguageModel:
    return load_folder(HERE / "models" / FOLDERS[name])


@lru_cache(maxsize=1)
def tolerances() -> dict[str, Any]:
    """What two runs of the published code itself differ by, by the name of the run."""
    return json.loads((HERE / "tolerances.json").read_text())  # type: ignore[no-any-return]


def variants(*prefixes: str) -> list[str]:
    names = [
        f"{m}/{d.name}"
        for m in FOLDERS
        for d in sorted((HERE / m).iterdir())
        if d.is_dir() and d.name.split("-")[0] in prefixes
    ]
    assert names
    return names


@dataclass(frozen=True)
class Variant:
    """One recorded run."""

    name: str

    @cached_property
    def data(self) -> dict[str, Any]:
        return json.loads((HERE / self.name / "data.json").read_text())  # type: ignore[no-any-return]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(HERE / self.name / "tensors.safetensors")

    @property
    def lm(self) -> LanguageModel:
        return model(self.name.split("/")[0])

    @property
    def records(self) -> list[EditRecord]:
        records = []
        for i, r in enumerate(self.data["requests"]):
            probes = [Probe(kind=ProbeKind.EFFICACY, prompt=r["prompt"], target=r["target_new"])]
            if r.get("rephrase_prompt"):
                probes.append(Probe(kind=ProbeKind.PARAPHRASE, prompt=r["rephrase_prompt"], target=r["target_new"]))
            probes.append(
                Probe(
                    kind=ProbeKind.LOCALITY,
                    prompt=r["locality_prompt"],
                    target=r["locality_ground_truth"],
                    against="base",
                )
            )
            records.append(
                EditRecord(
                    id=str(i), subject=r["subject"], prompt=r["prompt"], target=r["target_new"], probes=tuple(probes)
                )
            )
        return records

    def noise(self, group: str) -> float:
        """Largest absolute difference between two runs of the published code itself."""
        pairs = tolerances()[self.name]["max_abs_diff_and_max_abs_value"]
        return float(pairs[group][0]) if group in pairs else 0.0

    def spec(self) -> EditorSpec:
        h, editor = self.data["hparams"], self.data["alg"].lower()
        contexts = {"templates": self.data["context_templates"]}
        value = {
            "steps": h.get("v_num_grad_steps", 1),
            "lr": h.get("v_lr", 1.0),
            "weight_decay": h.get("v_weight_decay", 0.0),
            "clamp": h.get("clamp_norm_factor", 1.0),
            "kl": h.get("kl_factor", 0.0),
        }
        config: dict[str, Any] = {"layers": h.get("layers", ())}
        if editor == "ft":
            norm = h["norm_constraint"]
            config |= {
                "objective": h["objective_optimization"],
                "steps": h["num_steps"],
                "lr": h["lr"],
                "norm_constraint": norm if isinstance(norm, float) else None,
                "train_bias": not h["rewrite_module_tmp"].endswith(".weight"),
            }
        elif editor == "rome":
            config |= {"value": value, "contexts": contexts}
        elif editor == "alphaedit":
            config |= {"value": value, "contexts": contexts, "threshold": h["nullspace_threshold"]}
            config |= {"ridge": h["L2"], "pre": h["Pre"]}
        elif editor == "mend":
            blocks = [int(part) for name in h["inner_params"] for part in name.split(".") if part.isdigit()]
            outputs = [name.removesuffix(".weight") for name in h["inner_params"][:1]]
            first_out = outputs == [self.lm.layout.mlp_out.format(blocks[0])]
            config = {
                "layers": sorted(set(blocks)),
                "modules": ["mlp_out", "mlp_in"] if first_out else ["mlp_in", "mlp_out"],
            }
            config |= {"rank": h["rank"], "edit_lr": h["edit_lr"], "ref_labels": True, "train": {"steps": 0}}
        else:
            config |= {"value": value, "contexts": contexts, "moment_weight": h["mom2_update_weight"]}
        return EditorSpec(name=editor, config=config, wrap=self._wraps())

    def _wraps(self) -> tuple[WrapSpec, ...]:
        simie = self.data["simie"]
        if not simie:
            return ()
        backend = {"LU": "ref_fp32_lu", "Cholesky": "chol64", "SVD": "svd"}[simie["solver"]]
        mode = "init" if simie["init_model"] else "sequential"
        return (WrapSpec(name="simie", config={"lam": simie["lamHyper"], "mode": mode, "backend": backend}),)

    def artifacts(self) -> dict[str, Artifact]:
        moments = load_file(HERE / self.name.split("/")[0] / "covariance.safetensors")
        artifacts = {}
        if "inner_params" in self.data["hparams"]:
            archive = load_file(HERE / self.name.split("/")[0] / "mend_hypernetwork.safetensors")
            return {"hypernetwork": Artifact(f"{self.name}/archive", archive, {})}
        for layer in self.data["hparams"]["layers"]:
            name = self.lm.layout.mlp_out.format(layer)
            if name in moments:
                artifacts[f"moments/{layer}"] = Artifact(f"{self.name}/{layer}", {"moments": moments[name]}, {})
        if "nullspace_threshold" in self.data["hparams"]:
            projectors = load_file(HERE / self.name.split("/")[0] / "alphaedit_P.safetensors")["P"]
            for layer, projector in zip(self.data["hparams"]["layers"], projectors, strict=True):
                meta = {"kept_rank": round(float(projector.trace()))}
                artifacts[f"projector/{layer}"] = Artifact(f"{self.name}/P{layer}", {"projector": projector}, meta)
        return artifacts


def edit_each(
    lm: LanguageModel,
    editor: AnyEditor,
    records: Iterable[EditRecord],
    artifacts: Mapping[str, Artifact],
    state: Any = None,
) -> Iterator[tuple[EditStep[Any], Ledger]]:
    """Write *records* one by one; yield each step, and the ledger that has it. The model is restored at the end.

    *state* is what the editor begins with, if not with what it says itself.
    """
    ledger = Ledger(lm)
    if state is None:
        state = editor.begin(lm, artifacts)
    try:
        for record in records:
            step = editor.edit(lm, [record], state, artifacts=artifacts, rng=torch.Generator())
            ledger.apply(step.patch)
            state = step.state
            yield step, ledger
    finally:
        ledger.restore()


def replay(variant: Variant, spec: EditorSpec | None = None) -> list[dict[str, Tensor]]:
    """Edit every record with our editor; return the edited weights after each edit (the model is restored)."""
    editor = build_editor(spec or variant.spec())
    steps = edit_each(variant.lm, editor, variant.records, variant.artifacts())
    return [ledger.tensors() for _, ledger in steps]


def asked_after_edits(
    variant: Variant,
    editor: AnyEditor,
    states: Sequence[Any],
    score: Callable[[LanguageModel, list[Probe]], list[Scores]],
) -> Iterator[tuple[list[dict[str, Any]], list[Scores]]]:
    """Put the recorded questions to the model as it stood after the edits they were put to; yield their rows and our answers.

    *editor* patches modules, and *states* are its states after each edit. The model is restored.
    """
    ledger = Ledger(variant.lm)
    for step in sorted({e["after_edits"] for e in variant.data["evals"]}):
        rows = [e for e in variant.data["evals"] if e["after_edits"] == step]
        probes = [Probe(kind=ProbeKind.EFFICACY, prompt=e["prompt"], target=e["target"]) for e in rows]
        if step:
            ledger.apply(editor.module_patch(variant.lm, states[step - 1]))
        try:
            yield rows, score(variant.lm, probes)
        finally:
            ledger.restore()
