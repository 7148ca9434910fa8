"""Packs compute what padded rows do, and nothing twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raysweep.models import tokens
from raysweep.models.forward import blocks, matmul, positions, prefix_tree
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import replacement
from raysweep.testing.fixtures import FAMILIES, tiny_lm

ROWS = ([5, 6, 7, 8], [5, 6, 9], [11, 12, 13], [5, 6, 7, 8, 9, 10], [5, 6, 7, 8], [12])


@pytest.mark.parametrize("family", sorted([*FAMILIES, "gptj", "mistral", "qwen3"]))
@pytest.mark.parametrize("width", [1, 6, 9, 128])
def test_packs_give_the_states_of_padded_rows(family: str, width: int) -> None:
    lm = small(family)
    ids, mask = tokens.pad(ROWS, lm.device)
    packs = prefix_tree.pack_rows(lm, ROWS, width=width)
    with torch.no_grad():
        wanted = blocks.run(lm, ids=ids, mask=mask)
        found = packs.to_rows(blocks.run_packs(lm, packs))
    keep = mask.bool()
    torch.testing.assert_close(found[keep], wanted[keep], rtol=1e-4, atol=1e-5)


def small(family: str) -> LanguageModel:
    if family in FAMILIES:
        return tiny_lm(family)
    from raysweep.models.layout import layout_of
    from raysweep.testing.layout_contract import tiny_model

    module = tiny_model(family)
    return LanguageModel(module=module, tokenizer=None, layout=layout_of(module.config))  # type: ignore[arg-type]


def test_each_beginning_is_there_once() -> None:
    lm = tiny_lm("llama")
    one = prefix_tree.pack_rows(lm, ROWS)
    distinct = {tuple(row[: n + 1]) for row in ROWS for n in range(len(row))}
    assert one.ids.shape == (1, matmul.best_rows(len(distinct)))
    for row, (owner, columns) in zip(ROWS, one.row_positions, strict=True):
        assert one.ids[owner, list(columns)].tolist() == row
        assert one.positions[owner, list(columns)].tolist() == list(range(len(row)))
        sees = one.visible[owner, columns[-1]].nonzero()[:, 0].tolist()
        assert sees == sorted(columns)


def test_rows_go_alone_where_a_layout_says_that_they_do_not_share() -> None:
    lm = tiny_lm("llama")
    alone = replace(lm, layout=replace(lm.layout, shares_prefixes=False))
    packs = prefix_tree.pack_rows(alone, ROWS)
    assert sorted(pack for pack, _ in packs.row_positions) == list(range(len(ROWS)))
    for row, (pack, columns) in zip(ROWS, packs.row_positions, strict=True):
        assert columns == tuple(range(len(row)))
        assert packs.ids[pack, : len(row)].tolist() == row
        assert packs.visible[pack, : len(row), : len(row)].equal(torch.ones(len(row), len(row)).tril().bool())


def test_packs_are_as_few_as_the_width_allows_and_about_equal() -> None:
    lm = tiny_lm("llama")
    rows = [[i, i, i] for i in range(2, 12)]
    packs = prefix_tree.pack_rows(lm, rows, width=24)
    assert packs.ids.shape == (2, 16)
    assert prefix_tree.pack_rows(lm, [*rows, [1] * 40], width=24).ids.shape[1] == 40


def test_a_marked_token_is_shared_with_tokens_marked_alike_only() -> None:
    tree = prefix_tree.PrefixTree()
    first, second, third = tree.add([5, 6, 7], mark=1), tree.add([5, 6, 8]), tree.add([5, 6, 9], mark=1)
    assert first[0] == second[0] == third[0]
    assert first[1] == third[1] != second[1]


def test_a_window_is_counted_along_each_row() -> None:
    """In a pack a row's tokens need not lie side by side; a token sees the last three of its own row."""
    lm = small("mistral")
    lm.module.config.sliding_window = 3
    packs = prefix_tree.pack_rows(lm, [[1, 2, 3, 4], [1, 2, 5, 6, 7]])
    mask = prefix_tree.attention_mask(lm, packs.visible, packs.positions, packs.positions)
    assert isinstance(mask, torch.Tensor)
    ids = packs.ids[0].tolist()
    sees = {ids[i]: {ids[j] for j in range(7) if mask[0, 0, i, j] == 0} for i in range(7)}
    assert sees == {1: {1}, 2: {1, 2}, 3: {1, 2, 3}, 4: {2, 3, 4}, 5: {1, 2, 5}, 6: {2, 5, 6}, 7: {5, 6, 7}}


class Doubled(replacement.ReplacementModule):
    """Doubles the output of rows whose prompt ends with an even column."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        even = self.last_tokens(states) % 2 == 0
        return torch.where(even[:, None, None], 2.0, 1.0) * self.inner(states)  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("layers", [(), (0,), (1,), (2,), (0, 2)])
def test_asking_equals_whole_padded_rows(family: str, layers: tuple[int, ...]) -> None:
    lm = tiny_lm(family)
    last = [1, 2, 0, 3, 2, 0]
    spots = [(i, j) for i, row in enumerate(ROWS) for j in range(last[i], len(row))]
    ids, mask = tokens.pad(ROWS, lm.device)
    names = [lm.layout.mlp_out.format(layer) for layer in layers]
    stand_ins = {name: Doubled(lm.part(name)) for name in names}
    with torch.no_grad(), replacement.modules_replaced(lm, stand_ins):
        assert replacement.first_replaced_block(lm) == min(layers, default=None)
        with replacement.row_context(lm, last, mask):
            whole = blocks.run(lm, ids=ids, mask=mask)
        found = positions.hidden_at(lm, ROWS, last, spots)
    wanted = torch.stack([whole[i, j] for i, j in spots])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
