"""What a trial keeps of its edited model, where ``protocol.keep`` asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep import __version__, pytree
from raysweep.rows import EditedModel

if TYPE_CHECKING:
    from raysweep.config.schema import TrialSpec
    from raysweep.editors.base import AnyEditor
    from raysweep.models.ledger import Ledger
    from raysweep.models.lm import LanguageModel

WEIGHTS, STATE = "weights/", "state"  # before the names of an edited model's tensors


def as_measured(
    lm: LanguageModel, ledger: Ledger, trial: TrialSpec, editor: AnyEditor, state: object, step: int
) -> EditedModel | None:
    """Return *lm* as it is now, within the view that *trial* measures at *step*; None where nothing is kept.

    Weights are those that the model computes with, in its own precision, so that whoever puts them back has the logits that were
    measured, bit for bit. The state of an editor of weights is not kept: no answer depends on it.
    """
    if trial.protocol.keep != "edited" or step != trial.protocol.rounds[-1]:
        return None
    # A view may change weights that no edit has touched (SimIE's closed form), so the ledger's names are not enough.
    by_modules = editor.patch_kind == "modules"
    names = dict.fromkeys([*ledger.master, *(() if by_modules else editor.edited_parameters(lm))])
    tensors = {f"{WEIGHTS}{name}": lm.weight(name).detach().to("cpu", copy=True) for name in names}
    memory, plain = pytree.flatten(STATE, state) if by_modules else ({}, None)
    meta = {"version": __version__, "patch": editor.patch_kind, "state": plain}
    return EditedModel(tensors=tensors | memory, meta=meta)
