"""Proof that an export answers as the edited model did: it is read again in a fresh process, and logits are compared."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from raysweep.errors import ModelError
from raysweep.models import tokens
from raysweep.models.lm import LanguageModel

PROMPTS = 8  # how many are asked
_SCRIPT = Path(__file__).with_name("plain_reload.py")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


@dataclass(frozen=True)
class Claim:
    """What an export is to answer.

    Attributes:
        folder: of a model that plain transformers reads.
        prompts: what is asked.
        ids: of each prompt, ``[tokens]``.
        logits: of the edited model at each of them, ``[tokens, vocabulary]``.
        bos: ids before every prompt that the tokenizer does not add.
        dtype, device: of the model.
        tensors: a safetensors file to lay over the model.
        adapter: the folder of an adapter for the model.
        rounding: what a logit may differ by, as a part of the largest; 0 = not a bit.
    """

    folder: Path
    prompts: Sequence[str]
    ids: Sequence[Tensor]
    logits: Sequence[Tensor]
    bos: Sequence[int]
    dtype: torch.dtype
    device: torch.device
    tensors: Path | None = None
    adapter: Path | None = None
    rounding: float = 0.0

    @classmethod
    def of(
        cls, lm: LanguageModel, prompts: Sequence[str], folder: Path, *,
        tensors: Path | None = None, adapter: Path | None = None,
    ) -> Claim:  # fmt: skip
        """Return the claim that *folder*, with *tensors* or *adapter* over it, answers *prompts* as *lm* does now."""
        ids = [torch.tensor(tokens.encode(lm, prompt)) for prompt in prompts]
        with torch.no_grad():
            logits = [lm.module(input_ids=row[None].to(lm.device), use_cache=False).logits[0].cpu() for row in ids]
        # An adapter's product is added to what the map puts out, not to the weight, so sums are rounded elsewhere.
        rounding = math.sqrt(torch.finfo(lm.dtype).eps) if adapter else 0.0
        return cls(
            folder, prompts, ids, logits, lm.bos, lm.dtype, lm.device,
            tensors=tensors, adapter=adapter, rounding=rounding,
        )  # fmt: skip

    def request(self, answers: Path) -> dict[str, object]:
        """Return what the fresh process is asked, as JSON data."""
        return {
            "folder": str(self.folder),
            "tokenizer": str(self.folder),
            "prompts": list(self.prompts),
            "bos": list(self.bos),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "answers": str(answers),
            "tensors": str(self.tensors or ""),
            "adapter": str(self.adapter or ""),
        }

    def difference(self, answers: Path) -> float:
        """Return the largest difference of a logit in the file *answers*.

        Raises:
            ModelError: ids differ, or logits by more than ``rounding``.
        """
        from safetensors.torch import load_file

        found, largest = load_file(answers), 0.0
        for number, (prompt, ids, logits) in enumerate(zip(self.prompts, self.ids, self.logits, strict=True)):
            if not torch.equal(found[f"ids/{number}"], ids):
                raise _refused(f"the tokenizer that was written gives other tokens for '{prompt}'")
            again = found[f"logits/{number}"]
            difference = float((again.double() - logits.double()).abs().max())
            largest = max(largest, difference)
            bound = self.rounding * float(logits.double().abs().max())
            # `not <=` also of NaN; without rounding, a zero and its negative are two answers as well.
            if not difference <= bound or (not bound and not torch.equal(again, logits)):
                raise _refused(f"read again, its logits for '{prompt}' differ by {difference:.3g}, allowed {bound:.3g}")
        return largest


def prove(claims: Sequence[Claim]) -> list[float]:
    """Read the folders of *claims* in one fresh process with plain transformers; return the largest difference of each.

    Raises:
        ModelError: one cannot be read, or answers otherwise.
    """
    with TemporaryDirectory() as root:
        requests, answers = Path(root, "requests.json"), [Path(root, f"{i}.safetensors") for i in range(len(claims))]
        asked = [claim.request(path) for claim, path in zip(claims, answers, strict=True)]
        requests.write_text(json.dumps(asked), encoding="utf-8")
        # -P: what lies beside the script must not be taken for a package.
        done = subprocess.run(
            [sys.executable, "-P", str(_SCRIPT), str(requests)],
            env={**os.environ, **_OFFLINE}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise _refused(
                f"plain transformers cannot read it: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"
            )
        return [claim.difference(path) for claim, path in zip(claims, answers, strict=True)]


def _refused(reason: str) -> ModelError:
    return ModelError(f"the export is not the edited model, so nothing was written: {reason}")
