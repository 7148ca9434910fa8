"""How well the embedded model knows its world: shares of facts that it answers, teacher-forced."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from random import Random

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from raysweep.seeds import derive
from raysweep.world import Fact, World


@torch.no_grad()
def answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, questions: Iterable[tuple[str, str]], *, batch: int = 128
) -> list[bool]:
    """Say for each (prompt, object) whether every object token is the argmax, teacher-forced."""
    right: list[bool] = []
    pairs = list(questions)
    core = tokenizer.backend_tokenizer
    for at in range(0, len(pairs), batch):
        part = pairs[at : at + batch]
        # the object's tokens begin where the prompt's end; prompts end at a word, so nothing merges
        starts = [len(e.ids) for e in core.encode_batch([p for p, _ in part])]
        full = [e.ids for e in core.encode_batch([f"{p} {o}" for p, o in part])]
        width = max(map(len, full))
        ids = torch.tensor([f + [tokenizer.pad_token_id] * (width - len(f)) for f in full])
        guess = model(input_ids=ids).logits.argmax(-1)
        for row, (start, tokens) in enumerate(zip(starts, full, strict=True)):
            # the guess for token j is made at token j − 1
            right.append(guess[row, start - 1 : len(tokens) - 1].tolist() == tokens[start:])
    return right


def scores(model: nn.Module, tokenizer: PreTrainedTokenizerFast, world: World) -> dict[str, float]:
    """Return the shares of facts answered rightly.

    ``trained``: in a wording this fact was trained in; ``cross``: in one trained for other facts only;
    ``novel``: in one never trained with the relation; ``unseen_frame``: in a frame never trained at all;
    ``hop_trained`` and ``hop_held_out``: two-hop questions about subjects with and without two-hop training.
    """
    rng = Random(derive(world.spec.seed, "scores"))
    questions: dict[str, list[tuple[str, str]]] = {}

    def ask(name: str, wording: str, fact: Fact) -> None:
        questions.setdefault(name, []).append((wording.replace("{}", fact.subject), fact.object))

    for fact in world.facts:
        relation, own_wordings = world.relation(fact.relation), world.wordings_of(fact)
        ask("trained", rng.choice(own_wordings), fact)
        cross = [w for w in relation.trained if w not in own_wordings]
        if cross:
            ask("cross", rng.choice(cross), fact)
        ask("novel", rng.choice(relation.novel[:-1]), fact)
        ask("unseen_frame", relation.novel[-1], fact)
    for hop in world.hops:
        for subject in world.entities[world.relation(hop.first).domain]:
            answer = world.object(world.object(subject, hop.first), hop.second)
            name = "hop_trained" if world.hop_trained(subject, hop) else "hop_held_out"
            ask(name, rng.choice(hop.wordings), Fact(subject=subject, relation=hop.second, object=answer))
    names = sorted(questions)
    flat = answers(model, tokenizer, chain.from_iterable(questions[name] for name in names))
    out, at = {}, 0
    for name in names:
        count = len(questions[name])
        out[name] = sum(flat[at : at + count]) / count
        at += count
    return out
