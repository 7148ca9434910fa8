"""Partial forward passes equal full ones; instruments undo themselves; one writer of weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest
import torch
from transformers.cache_utils import DynamicCache

from raysweep.models import hooks, tokens
from raysweep.models import ledger as weight_ledger
from raysweep.models.forward import blocks, prefix_tree, resume
from raysweep.models.layout import LAYOUTS, layout_of
from raysweep.models.lm import LanguageModel
from raysweep.models.patches import Dense, LowRank, WeightDelta
from raysweep.testing.fixtures import FAMILIES, fingerprint, same, tiny_lm
from raysweep.testing.layout_contract import tiny_model

ROWS = ([5, 6, 7, 8, 9, 10], [11, 12, 13], [5, 6, 7, 20, 21, 22, 23, 24])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_run_is_the_models_own_forward(family: str) -> None:
    lm = tiny_lm(family)
    ids, mask = tokens.pad(ROWS, lm.device)
    with torch.no_grad():
        ours = blocks.logits(lm, blocks.run(lm, ids=ids, mask=mask))
        theirs = lm.module(input_ids=ids, attention_mask=mask).logits
    keep = mask.bool()
    torch.testing.assert_close(ours[keep], theirs[keep], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("first", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("start", "together"),
    [((0, 0, 0), False), ((3, 1, 5), False), ((3, 1, 5), True), ((5, 2, 7), False), ((5, 2, 7), True)],
)
def test_tail_equals_the_whole_model_under_a_change(
    family: str, first: int, start: tuple[int, ...], together: bool
) -> None:
    """Change one token of what enters a block: reusing what cannot change gives the same final states, to rounding."""
    lm = tiny_lm(family)
    ids, mask = tokens.pad(ROWS, lm.device)
    shift = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    trees = [prefix_tree.PrefixTree()] * 3 if together else [prefix_tree.PrefixTree() for _ in ROWS]
    places = [(0 if together else i, trees[i].add(row, mark=start[i])) for i, row in enumerate(ROWS)]
    packs = prefix_tree.lay_out(lm, trees[:1] if together else trees, places)
    at = [(packs.row_positions[i][0], packs.row_positions[i][1][s]) for i, s in enumerate(start)]
    pack, node = torch.tensor(at).T
    change = torch.zeros_like(packs.ids, dtype=torch.bool)
    change[pack, node] = True
    entry = (lm.layout.block.format(max(first - 1, 0)), "output" if first else "input")
    with torch.no_grad():
        with hooks.capture(lm, [entry]) as seen:  # type: ignore[list-item]
            blocks.run(lm, ids=ids, mask=mask, last=max(first - 1, 0))
        moved = seen[entry].clone()  # type: ignore[index]
        moved[range(3), start] += shift
        whole = blocks.run(lm, states=moved, mask=mask, first=first)
        rest = resume.remainder_after(lm, packs, change, first=first)
        states = rest.states.index_put((pack, rest.column_of[pack, node]), shift, accumulate=True)
        ours = rest.hidden(lm, states)
    assert int((rest.column_of >= 0).sum()) == sum(len(row) - s for row, s in zip(ROWS, start, strict=True))
    for i, row in enumerate(ROWS):
        for j in range(start[i], len(row)):
            found = ours[
                packs.row_positions[i][0], rest.column_of[packs.row_positions[i][0], packs.row_positions[i][1][j]]
            ]
            torch.testing.assert_close(found, whole[i, j], rtol=1e-4, atol=1e-5)


@pytest.fixture
def strict() -> Iterator[logging.Handler]:
    """Make an error of every warning that transformers gives, in Python's way or through its logger."""
    from transformers.utils import logging as theirs

    class Refuse(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise AssertionError(record.getMessage())

    handler = Refuse(logging.WARNING)
    logger = theirs.get_logger("transformers")
    before = logger.level
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    theirs.warning_once.cache_clear()  # of what another test heard
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.mark.parametrize("family", [n for n in LAYOUTS.names() if LAYOUTS.get(n).shares_prefixes])
def test_a_cache_is_handed_over_in_a_way_that_stays(family: str, strict: logging.Handler) -> None:
    """No deprecated argument; and none that a model has stopped to know, which it would swallow without a word."""
    module = tiny_model(family)
    lm = LanguageModel(module=module, tokenizer=tiny_lm("llama").tokenizer, layout=layout_of(module.config), digest="")
    ids, mask = torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.ones(1, 6, dtype=torch.long)
    with torch.no_grad():
        whole = blocks.run(lm, ids=ids, mask=mask)
        cache = DynamicCache()
        blocks.run(lm, ids=ids[:, :4], mask=mask[:, :4], cache=cache)
        assert cache.get_seq_length() == 4
        rest = blocks.run(lm, ids=ids[:, 4:], mask=mask, positions=torch.tensor([[4, 5]]), cache=cache)
        states = lm.part(lm.layout.embed)(ids)
        blocks.run(lm, states=states, mask=mask, first=1)
    torch.testing.assert_close(rest, whole[:, 4:], rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError, match="is deprecated"):
        logging.getLogger(f"transformers.models.{family}").warning("`x` is deprecated")


def test_instruments_leave_no_trace() -> None:
    lm = tiny_lm("llama")
    before = fingerprint(lm)
    ids, mask = tokens.pad(ROWS, lm.device)
    with torch.no_grad(), hooks.capture(lm, [(lm.layout.mlp_out.format(1), "input")]) as seen:
        blocks.run(lm, ids=ids, mask=mask, last=1)
    assert seen[lm.layout.mlp_out.format(1), "input"].shape == (3, 8, 24)
    with pytest.raises(RuntimeError, match="on purpose"), blocks.only_blocks(lm, 1, 1):
        raise RuntimeError("on purpose")
    name = f"{lm.layout.mlp_out.format(0)}.weight"
    with pytest.raises(RuntimeError, match="on purpose"), weight_ledger.substituted(lm, {name: torch.zeros(16, 24)}):
        raise RuntimeError("on purpose")
    with weight_ledger.substituted(lm, {name: torch.zeros(16, 24)}):
        assert float(lm.weight(name).sum()) == 0
    assert same(before, fingerprint(lm))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_ledger_writes_logical_changes_and_undoes_them(family: str) -> None:
    lm = tiny_lm(family)
    before = fingerprint(lm)
    name = f"{lm.layout.mlp_out.format(1)}.weight"
    old = lm.logical(name).clone()
    change = LowRank(torch.ones(16, 1), torch.arange(24.0)[None])
    ledger = weight_ledger.Ledger(lm)
    ledger.apply(WeightDelta({name: change}))
    ledger.apply(WeightDelta({name: Dense(torch.ones(16, 24))}))
    torch.testing.assert_close(lm.logical(name), old + change.dense() + 1)
    assert ledger.norms()[name] > 0
    saved = ledger.tensors()
    ledger.restore()
    assert same(before, fingerprint(lm))
    ledger.load(saved)
    assert torch.equal(lm.logical(name), weight_ledger.to_stored_layout(lm, name, saved[name]))
    ledger.restore()


def test_small_changes_add_up_in_half_precision() -> None:
    """A thousand changes, each below bf16's resolution, are not lost: the ledger keeps fp32."""
    lm = tiny_lm("llama")
    lm.module.to(torch.bfloat16)
    name = f"{lm.layout.mlp_out.format(0)}.weight"
    lm.weight(name).fill_(1.0)
    ledger = weight_ledger.Ledger(lm)
    for _ in range(1000):
        ledger.apply(WeightDelta({name: Dense(torch.full((16, 24), 1e-4))}))
    assert float(lm.weight(name)[0, 0]) == pytest.approx(1.1, abs=0.01)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_blocks_keep_their_names_while_only_some_of_them_run(family: str) -> None:
    """A stand-in that looks its own block up while it is asked finds that block, not another one's weights."""
    lm = tiny_lm(family)
    whole = [lm.part(lm.layout.block.format(i)) for i in range(lm.n_blocks)]
    with blocks.only_blocks(lm, 1, 2) as kept:
        assert list(kept) == whole[1:3]
        assert [lm.part(lm.layout.block.format(i)) for i in (1, 2)] == whole[1:3]
    assert [lm.part(lm.layout.block.format(i)) for i in range(lm.n_blocks)] == whole
