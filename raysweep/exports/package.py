"""Only what the edits changed, as a folder: tensors, a JSON that says of which model, and how to load them.

Of an editor of weights the tensors have the names of parameters and lie over the model with ``load_state_dict``. The memory of an
editor that replaces modules (GRACE, WISE) has no place in a plain model; :func:`loaded` puts it to work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from raysweep.config.schema import TrialSpec
from raysweep.errors import DamagedError, ModelError
from raysweep.exports.trials import EditedTrial, attached
from raysweep.hashing import file_digest
from raysweep.models import tokens
from raysweep.models.forward import blocks, positions
from raysweep.models.lm import LanguageModel
from raysweep.models.sources.load import load
from raysweep.studies.kept import STATE, WEIGHTS
from raysweep.workspace import Workspace

ABOUT, TENSORS, HOWTO = "edited.json", "edited.safetensors", "README.md"
FORMAT = "raysweep-edited/1"
_PLAIN = """\
    from safetensors.torch import load_file
    model.load_state_dict(load_file("edited.safetensors"), strict=False)   # a plain transformers model, unedited
"""
_MEMORY = """\
The edits are a memory that answers in place of one of the model's modules. A plain model cannot hold it, so raysweep loads it:

    from raysweep.exports.package import loaded
    from raysweep.evals.generation import generate
    with loaded("THIS FOLDER") as lm:
        (written,) = generate(lm, ["A prompt"], [8])   # ids of at most 8 tokens, greedily
        print(lm.tokenizer.decode(written))
"""


def write_package(opened: EditedTrial, folder: Path) -> None:
    """Write the tensors of *opened*, and what tells whose they are and how to load them, into *folder*."""
    from safetensors.torch import save_file

    # Plain names for weights: with them the file lies over a plain model.
    tensors = {n.removeprefix(WEIGHTS): t.contiguous().clone() for n, t in opened.edited.tensors.items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    trial, spec = opened.trial, opened.trial.model
    about = {
        "format": FORMAT,
        "model": {
            "name": spec.name,
            "revision": spec.revision,
            "digest": spec.digest,
            "dtype": spec.dtype,
            "bos": spec.bos,
        },
        "arm": opened.name.arm,
        "trial_key": opened.name.key,
        "edits": trial.protocol.rounds[-1],
        "editor": trial.editor.label,
        "names": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "blake2b": file_digest(folder / TENSORS),
        "meta": dict(opened.edited.meta),
        "trial": trial.model_dump(mode="json"),
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    howto = _MEMORY if opened.has_memory else _PLAIN
    head = f"# {trial.editor.label} on {spec.name}, after {trial.protocol.rounds[-1]} edits\n\n"
    (folder / HOWTO).write_text(
        f"{head}`{ABOUT}` names the model, by its digest, and the tensors.\n\n{howto}", encoding="utf-8"
    )


@contextmanager
def loaded(folder: Path | str, workspace: Workspace | None = None) -> Iterator[LanguageModel]:
    """Load the model that the package in *folder* names, with its edits at work inside the block.

    Raises:
        DamagedError: a file of the package is missing, or not as it was written.
        ModelError: the model is not there, or is not the one that was edited.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder / ABOUT} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DamagedError(f"{folder / ABOUT} is no {FORMAT}", hint="`raysweep export … --as tensors` writes one")
    # before anything is read: damaged numbers would load without a complaint
    if not (folder / TENSORS).is_file() or file_digest(folder / TENSORS) != about["blake2b"]:
        raise DamagedError(f"{folder / TENSORS} is not as it was written")
    tensors = load_file(folder / TENSORS)
    named = {n if n.startswith(STATE) else f"{WEIGHTS}{n}": t for n, t in tensors.items()}
    trial = TrialSpec.read_back(about["trial"])
    lm = load(trial.model, workspace or Workspace.here())
    with attached(lm, trial.editor, named, about["meta"]):
        yield lm


def last_logits(lm: LanguageModel, prompts: Sequence[str]) -> Tensor:
    """Return the logits ``[prompts, vocabulary]`` behind each prompt, by the passes that memories know."""
    rows = [tokens.encode(lm, prompt) for prompt in prompts]
    with torch.no_grad():
        # One by one: a row must not depend on its neighbours here.
        hidden = [positions.hidden_at(lm, [row], [len(row) - 1], [(0, len(row) - 1)]) for row in rows]
        return torch.cat([blocks.logits(lm, one) for one in hidden]).cpu()


def prove_package(folder: Path, workspace: Workspace, prompts: Sequence[str], logits: Tensor) -> float:
    """Load *folder* in a fresh process and compare its :func:`last_logits` with *logits*; return the largest difference, 0.

    Raises:
        ModelError: it cannot be loaded, or one bit differs.
    """
    from safetensors.torch import load_file

    with TemporaryDirectory() as root:
        asked, answers = Path(root, "prompts.json"), Path(root, "answers.safetensors")
        # with another number of threads the last bits would differ
        asked.write_text(json.dumps([torch.get_num_threads(), *prompts]), encoding="utf-8")
        command = [sys.executable, "-m", __name__, str(folder), str(asked), str(answers)]
        # a package names its model, which must be looked for where ours was
        environment = {**os.environ, "RAYSWEEP_ROOT": str(workspace.root)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ModelError(f"the package cannot be loaded: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        found = load_file(answers)["logits"]
    difference = float((found.double() - logits.double()).abs().max())
    if not torch.equal(found, logits):
        raise ModelError(f"the package is not the edited model: loaded again, its logits differ by {difference:.3g}")
    return difference


def _answer(folder: str, asked: str, answers: str) -> None:
    from safetensors.torch import save_file

    threads, *prompts = json.loads(Path(asked).read_text(encoding="utf-8"))
    torch.set_num_threads(threads)
    with loaded(folder) as lm:
        save_file({"logits": last_logits(lm, prompts).contiguous()}, answers)


if __name__ == "__main__":
    _answer(*sys.argv[1:])
