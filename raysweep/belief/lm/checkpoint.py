"""A training run on disk: snapshots to go on from, and the finished model as a folder that any loader reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep import atomic

if TYPE_CHECKING:
    from torch import Tensor

    from raysweep.belief.lm.pretrain import SnapshotMeta, Trainer
    from raysweep.models.lm import LanguageModel


def write_model_folder(lm: LanguageModel, folder: Path) -> None:
    """Write *lm* as a folder that ``model.path`` accepts: configuration, tokenizer, safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    lm.module.config.architectures = [type(lm.module).__name__]
    lm.module.config.save_pretrained(folder)
    # Untied weights, so none is stored twice.
    weights = {name: w.detach().cpu().contiguous() for name, w in lm.module.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    lm.tokenizer.save_pretrained(folder)


def write_snapshot(folder: Path, trainer: Trainer) -> None:
    """Write a snapshot (safetensors and JSON) so that the old one or the new one is there, never half of one."""
    from safetensors.torch import save_file

    tensors, meta = trainer.snapshot()
    with atomic.write_folder(folder, only_writer=True) as draft:
        save_file(tensors, draft / "state.safetensors")
        (draft / "state.json").write_text(json.dumps(meta), encoding="utf-8")


def read_snapshot(folder: Path) -> tuple[dict[str, Tensor], SnapshotMeta] | None:
    """Return the tensors and JSON of the snapshot in *folder* (or of the one it was about to replace), or None."""
    from safetensors.torch import load_file

    # The old one is there if the run was cut off between the two renames.
    for place in (folder, folder.with_name(f"{folder.name}.old")):
        if (place / "state.json").is_file():
            meta: SnapshotMeta = json.loads((place / "state.json").read_text(encoding="utf-8"))
            return load_file(place / "state.safetensors"), meta
    return None
