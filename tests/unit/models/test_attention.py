"""Every way of ours through a model is the model's own: windows, mixed blocks, scaled rotary positions, biases, norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.plain import common, ft, grace, memit, rome, wise
from raysweep.artifacts import Artifact
from raysweep.editors.ft import FineTune, FineTuneConfig
from raysweep.editors.grace import Grace, GraceConfig
from raysweep.editors.memit import Memit, MemitConfig
from raysweep.editors.mend import factors
from raysweep.editors.rome import Rome, RomeConfig
from raysweep.editors.wise import training
from raysweep.editors.wise.config import WiseConfig
from raysweep.editors.wise.editor import Wise
from raysweep.errors import ModelError
from raysweep.evals.generation import generate
from raysweep.evals.scoring import score
from raysweep.models import attention, hooks, tokens
from raysweep.models.forward import blocks, llama_fused, positions, prefix_tree, resume
from raysweep.models.layout import layout_of
from raysweep.models.lm import LanguageModel
from raysweep.models.modules import codebook, replacement, side_memory
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.testing.fixtures import byte_tokenizer, toy_records
from raysweep.testing.layout_contract import tiny_model

WINDOW = 6  # shorter than every text here
MIXED = {"use_sliding_window": True, "sliding_window": WINDOW}
ROPE = {"rope_theta": 10_000.0, "factor": 2.0}
CONFIGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "mistral, window": ("mistral", {"sliding_window": WINDOW}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "mistral, another number of heads": ("mistral", {"sliding_window": WINDOW, "head_dim": 8, "num_key_value_heads": 1}),
    "qwen2, upper blocks": ("qwen2", {**MIXED, "max_window_layers": 1}),
    "qwen2, every other block": ("qwen2", {**MIXED, "layer_types": [attention.SLIDING, attention.FULL, attention.SLIDING]}),
    "qwen2, all blocks": ("qwen2", {**MIXED, "max_window_layers": 0}),
    "qwen2, window switched off": ("qwen2", {"sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3, upper blocks": ("qwen3", {**MIXED, "max_window_layers": 2}),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
    "llama, a window nobody reads": ("llama", {"sliding_window": WINDOW}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, gelu": ("llama", {"hidden_act": "gelu"}),
    "llama, linear rope": ("llama", {"rope_parameters": {**ROPE, "rope_type": "linear"}}),
    "llama, yarn": ("llama", {"rope_parameters": {**ROPE, "rope_type": "yarn", "original_max_position_embeddings": 8}}),
    "llama, llama3 rope": (
        "llama",
        {"rope_parameters": {**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8}},
    ),
    "llama, dynamic rope, inside": ("llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic"}}),
    "llama, longrope, inside": (
        "llama",
        {"rope_parameters": {**ROPE, "rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [4.0, 8.0],
                             "original_max_position_embeddings": 128}},
    ),
    "gpt2, scaled by block": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "gpt2, unscaled": ("gpt2", {"scale_attn_weights": False}),
    "gptj, partial rotary": ("gptj", {}),
    "gpt_neox, side by side": ("gpt_neox", {}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon, one key for all": ("falcon", {}),
    "falcon, one after the other": ("falcon", {"parallel_attn": False, "bias": True}),
    "falcon, newer, two norms": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, newer, one norm": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "olmo": ("olmo", {}),
    "olmo, clipped": ("olmo", {"clip_qkv": 0.5}),
    "phi": ("phi", {}),
    "phi, normed heads": ("phi", {"qk_layernorm": True}),
    "phi3": ("phi3", {}),
    "phi3, window": ("phi3", {"sliding_window": WINDOW}),
    "gemma3, window in two of three blocks": ("gemma3_text", {"sliding_window": WINDOW}),
    "olmo2, normed outputs": ("olmo2", {}),
    "qwen3.5, linear attention in two": ("qwen3_5_text", {}),
    "gpt-oss, experts, every second windowed": ("gpt_oss", {"sliding_window": WINDOW}),
}  # fmt: skip
EDITED = [
    "mistral, window", "qwen2, upper blocks", "qwen2, every other block", "qwen3, upper blocks", "llama, biases",
    "llama, dynamic rope, inside", "gpt2, scaled by block", "gpt_neox, one after the other", "falcon, one key for all",
    "falcon, newer, two norms", "olmo, clipped", "phi", "phi3, window",
    "gemma3, window in two of three blocks", "olmo2, normed outputs", "qwen3.5, linear attention in two",
]  # fmt: skip
TIGHT = [
    name for name in CONFIGS if "window" in name or "block" in name or "heads" in name
]  # a window is, or was, at stake


def model(name: str) -> LanguageModel:
    kind, changes = CONFIGS[name]
    module = tiny_model(kind, **{"vocab_size": 258, "max_position_embeddings": 256, "n_positions": 256, **changes})
    with torch.no_grad():  # so that a token far away matters
        for name_, weight in module.named_parameters():
            if any(part in name_ for part in ("q_proj", "k_proj", "c_attn", "qkv_proj")):
                weight.mul_(6.0)
    return LanguageModel(
        module=module, tokenizer=byte_tokenizer(bos=True), layout=layout_of(module.config), digest=name
    )


def rows(lm: LanguageModel) -> list[list[int]]:
    texts = ("The pet of Ana is a cat", "The pet of Bo is", "The pet of Ana is a dog, said Bo", "x")
    return [tokens.encode(lm, text) for text in texts]


def own(lm: LanguageModel, row: list[int]) -> Tensor:
    """Return the logits ``[T, V]`` of the model itself, of one row alone."""
    with torch.no_grad():
        return lm.module(torch.tensor([row])).logits[0]


def far(lm: LanguageModel) -> dict[str, Any]:
    """A codebook that never answers: it only makes the evaluation take the way of memory editors."""
    name = lm.layout.mlp_out.format(1)
    d_out, d_in = replacement.weight_and_bias(lm.part(name))[0].shape
    never = codebook.Codebook(lm.part(name), torch.full((1, d_in), 1e3), torch.zeros(1, d_out), torch.zeros(1))
    return {name: never}


# A codebook takes the place of a linear map, which experts do not have.
@pytest.mark.parametrize(
    ("name", "stand_in"), [(n, s) for n in CONFIGS for s in (False, True) if (n[:7], s) != ("gpt-oss", True)]
)
def test_scoring_packed_and_padded_is_the_models_own_row_by_row(name: str, stand_in: bool) -> None:
    lm = model(name)
    asked = rows(lm)
    spots = [(i, j) for i, row in enumerate(asked) for j in range(len(row))]
    wanted = [own(lm, row) for row in asked]
    with torch.no_grad(), replacement.modules_replaced(lm, far(lm) if stand_in else {}):
        hidden = positions.hidden_at(lm, asked, [len(row) - 1 for row in asked], spots)
        found = blocks.logits(lm, hidden)
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TIGHT)
def test_a_window_matters_here(name: str) -> None:
    """Else the tests around this one would prove nothing: without it the last token's logits differ."""
    lm = model(name)
    row = rows(lm)[2]
    before, had = own(lm, row), set(attention.windows(lm.module.config)) != {None}
    lm.module.config.sliding_window = None if lm.module.config.model_type in ("mistral", "phi3") else 10_000
    assert torch.allclose(own(lm, row)[-1], before[-1], atol=1e-3) is not had


@pytest.mark.parametrize("name", CONFIGS)
def test_any_blocks_alone_are_the_models_own(name: str) -> None:
    """What MEND, WISE and LoRA's kin do: padded rows, from a block on, up to a block."""
    lm = model(name)
    asked = rows(lm)
    ids, mask = tokens.pad(asked, lm.device)
    block = lm.layout.block
    for first in range(lm.n_blocks):
        wanted = [(block.format(first), "input"), (block.format(lm.n_blocks - 1), "output")]
        for i, row in enumerate(asked):
            with torch.no_grad(), hooks.capture(lm, wanted) as seen:  # type: ignore[arg-type]
                own(lm, row)
                entering, leaving = (seen[side] for side in wanted)  # type: ignore[index]
            with torch.no_grad(), hooks.capture(lm, wanted) as seen:  # type: ignore[arg-type]
                blocks.run(lm, ids=ids, mask=mask, last=max(first, 0))
                states = seen[wanted[0]]  # type: ignore[index]
            torch.testing.assert_close(states[i, : len(row)], entering[0], rtol=1e-4, atol=1e-4)
            with torch.no_grad(), hooks.capture(lm, wanted[1:]) as seen:  # type: ignore[arg-type]
                blocks.run(lm, states=states, mask=mask, first=first)
            torch.testing.assert_close(seen[wanted[1]][i, : len(row)], leaving[0], rtol=1e-4, atol=1e-4)  # type: ignore[index]


@pytest.mark.parametrize("name", CONFIGS)
def test_reused_keys_and_values_are_the_models_own(name: str) -> None:
    """A shift of one token in the middle, which is more than a window after the first one."""
    lm = model(name)
    asked, shift = rows(lm)[:3], torch.randn(16, generator=torch.Generator().manual_seed(0))
    at = [8, 10, 12]
    for first in range(1, lm.n_blocks + 1):
        trees = [prefix_tree.PrefixTree() for _ in asked]
        places = [(i, tree.add(row, mark=k)) for i, (tree, row, k) in enumerate(zip(trees, asked, at, strict=True))]
        packs = prefix_tree.lay_out(lm, trees, places)
        change = torch.zeros_like(packs.ids, dtype=torch.bool)
        change[range(3), at] = True
        with torch.no_grad():
            rest = resume.remainder_after(lm, packs, change, first=first)
            moved = rest.states.index_put(
                (torch.arange(3), rest.column_of[range(3), at]), shift.repeat(3, 1), accumulate=True
            )
            found = blocks.logits(lm, rest.hidden(lm, moved))
        for i, row in enumerate(asked):

            def add(_: Any, __: Any, output: Any, k: int = at[i]) -> Any:
                states = hooks.first(output).clone()
                states[0, k] += shift
                return (states, *output[1:]) if isinstance(output, tuple) else states

            with common.hooked(lm, lm.layout.block.format(first - 1), add):
                wanted = own(lm, row)
            mine = found[i, rest.column_of[i, at[i] : len(row)]]
            torch.testing.assert_close(mine, wanted[at[i] :], rtol=1e-4, atol=1e-4)


def the_record() -> EditRecord:
    return toy_records(3)[1]


def close(mine: Any, theirs: Mapping[str, Tensor], lm: LanguageModel) -> None:
    assert set(mine) == set(theirs)
    for name, delta in mine.items():
        wanted = theirs[name].T if lm.transposed(name) else theirs[name]
        assert float((delta.dense() - wanted).norm() / wanted.norm()) < 1e-3, name


VALUE = {"steps": 5, "lr": 0.3, "kl": 0.0625}
TEXTS = ["So it was said. {}", "Yes {}"]


@pytest.mark.parametrize("name", EDITED)
def test_rome_and_memit_are_those_that_run_the_whole_model(name: str) -> None:
    lm, record = model(name), the_record()
    contexts = {"templates": TEXTS}
    root = torch.randn(24, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moments = dict.fromkeys((0, 1), root @ root.T / 60)
    artifacts = {f"moments/{layer}": Artifact(str(layer), {"moments": m}, {}) for layer, m in moments.items()}
    all_texts = ("{}", *TEXTS)
    one = RomeConfig.model_validate({"layers": [1], "value": VALUE, "contexts": contexts})
    step = Rome(one).edit(lm, [record], None, artifacts=artifacts, rng=torch.Generator())
    close(step.patch.deltas, rome.edit(lm, record, one, all_texts, rome.inverses(one, moments)), lm)
    if lm.layout.mlp_out_norm is not None:
        return  # MEMIT is refused: a change of the stream is no change of a value there
    many = MemitConfig.model_validate({"layers": [0, 1], "value": VALUE, "contexts": contexts, "moment_weight": 1.0})
    step = Memit(many).edit(lm, [record], None, artifacts=artifacts, rng=torch.Generator())
    close(step.patch.deltas, memit.edit(lm, record, many, all_texts, moments), lm)


@pytest.mark.parametrize("objective", ["prompt_last", "target_new"])
@pytest.mark.parametrize("name", EDITED)
def test_fine_tuning_is_that_of_the_whole_model(name: str, objective: str) -> None:
    lm, record = model(name), the_record()
    config = FineTuneConfig.model_validate({"layers": [1], "objective": objective, "steps": 3, "lr": 1e-3})
    step = FineTune(config).edit(lm, [record], None, artifacts={}, rng=torch.Generator())
    close(step.patch.deltas, ft.edit(lm, record, config), lm)
    together = FineTune(config.model_copy(update={"batch": 2})).edit_many(
        lm, [[record], [toy_records(3)[2]]], artifacts={}, rngs=[torch.Generator()] * 2
    )
    close(together[0].patch.deltas, ft.edit(lm, record, config), lm)


@pytest.mark.parametrize("matrix", ["in", "out"])
@pytest.mark.parametrize("name", EDITED)
def test_grace_is_that_of_the_whole_model(name: str, matrix: str) -> None:
    lm, book = model(name), grace.Book()
    config = GraceConfig.model_validate({"layer": 1, "matrix": matrix, "steps": 4, "lr": 0.1, "radius": 0.01})
    editor = Grace(config)
    state = editor.begin(lm, {})
    for i, record in enumerate(toy_records(3)):
        rng = torch.Generator().manual_seed(i)
        start = editor.start_value(state["values"].shape[1], torch.Generator().manual_seed(i))
        grace.edit(lm, record, config, book, start)
        state = editor.edit(lm, [record], state, artifacts={}, rng=rng).state
    torch.testing.assert_close(state["keys"], torch.stack(book.keys), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state["values"], torch.stack(book.values), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("padding", ["right", "published"])
@pytest.mark.parametrize("matrix", ["in", "out"])
@pytest.mark.parametrize("name", EDITED)
def test_wise_is_that_of_the_whole_model(name: str, matrix: str, padding: str) -> None:
    lm, record = model(name), the_record()
    config = WiseConfig.model_validate(
        {"layer": 1, "matrix": matrix, "steps": 4, "lr": 0.05, "contexts": {"templates": TEXTS}, "mask_ratio": 1.0,
         "ref_padding": padding == "published", "margins": {"alpha": 0.01, "beta": 5.0, "gamma": 1.0}}
    )  # fmt: skip
    editor, memory = Wise(config), wise.begin(lm, config)
    frozen = memory.side
    step = editor.edit(lm, [record], editor.begin(lm, {}), artifacts={}, rng=torch.Generator())
    wise.edit(lm, record, config, ("{}", *TEXTS), memory, torch.ones_like(frozen))
    mine, theirs = step.state["side"] - frozen, memory.side - frozen
    assert float(theirs.norm()) > 1e-3
    assert float((mine - theirs).norm() / theirs.norm()) < 1e-3


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("name", EDITED)
def test_mends_factors_are_the_gradient_of_the_whole_model(name: str, layer: int) -> None:
    lm, batch = model(name), toy_records(3)
    module = lm.layout.mlp_out.format(layer)
    asks = [factors.label_text(lm, r.prompt, r.target) for r in batch]
    found = factors.gradient_factors(lm, factors.batch_texts(lm, asks, layer), [module])
    x, delta = found.pairs[module]
    weight = lm.weight(f"{module}.weight")
    for i, one in enumerate(asks):
        weight.requires_grad_(True)
        logits = lm.module(torch.tensor([one.ids])).logits[0]
        loss = F.cross_entropy(logits[list(one.predicting)], torch.tensor(one.labels))
        (wanted,) = torch.autograd.grad(loss, weight)
        weight.requires_grad_(False)
        mine = delta[i].T @ x[i]
        torch.testing.assert_close(
            mine, wanted.T if lm.transposed(f"{module}.weight") else wanted, rtol=1e-3, atol=1e-5
        )
        assert float(found.loss[i]) == pytest.approx(float(loss.detach()), abs=1e-4)


@pytest.mark.parametrize("name", EDITED)
def test_probes_and_written_answers_are_the_models_own(name: str) -> None:
    lm, records = model(name), toy_records(4)
    probes = [Probe(kind=ProbeKind.EFFICACY, prompt=r.prompt, target=r.target) for r in records]
    for probe, found in zip(probes, score(lm, probes), strict=True):
        asked = tokens.labelled_ids(lm, probe.prompt, tokens.join(probe.prompt, probe.target))
        logits = own(lm, list(asked.ids)).log_softmax(-1)
        spots = range(asked.start - 1, len(asked.ids) - 1)
        assert found.logprob == pytest.approx(sum(float(logits[j, asked.ids[j + 1]]) for j in spots), abs=1e-3)
        assert found.answers == tuple(int(logits[j].argmax()) for j in spots)
    written = generate(lm, [probes[0].prompt], [6])[0]
    row = tokens.encode(lm, probes[0].prompt)
    for token in written:
        assert token == int(own(lm, row)[-1].argmax())
        row = [*row, token]


def test_the_fast_way_is_taken_only_by_blocks_that_it_computes() -> None:
    fast = {name for name in CONFIGS if llama_fused.supports(model(name), 1)}
    slow = {name for name in CONFIGS if name.startswith(("qwen3", "gpt", "falcon", "olmo", "phi", "gemma3"))} | {
        "llama, gelu"
    }
    slow |= {"qwen2, upper blocks", "qwen2, every other block"}
    assert fast == set(CONFIGS) - slow


def test_a_class_of_the_same_name_is_not_the_one_that_is_known() -> None:
    lm = model("llama, tied")
    block = lm.part(lm.layout.block.format(1))
    other = type("LlamaDecoderLayer", (type(block),), {})
    block.__class__ = other
    assert not llama_fused.supports(lm, 0)
    assert llama_fused.supports(lm, 2)


def test_scores_scaled_otherwise_go_the_plain_way() -> None:
    lm = model("llama, tied")
    lm.part(lm.layout.block.format(1)).self_attn.scaling = 0.1  # type: ignore[union-attr]
    assert not llama_fused.supports(lm, 0)
    row = rows(lm)[0]
    with torch.no_grad():
        hidden = positions.hidden_at(lm, [row], [0], [(0, j) for j in range(len(row))])
    torch.testing.assert_close(blocks.logits(lm, hidden), own(lm, row), rtol=1e-4, atol=1e-4)


def test_the_configuration_comes_back_whole() -> None:
    lm = model("qwen2, every other block")
    types = list(lm.module.config.layer_types)
    with blocks.only_blocks(lm, 1, 2):
        assert lm.module.config.layer_types == types[1:]
    with pytest.raises(RuntimeError, match="on purpose"), blocks.only_blocks(lm, 1, 2):
        raise RuntimeError("on purpose")
    assert lm.module.config.layer_types == types


LONG = {
    "dynamic": ({"rope_parameters": {**ROPE, "rope_type": "dynamic"}, "max_position_embeddings": 16}, "rope_type 'dynamic'"),
    "longrope": (
        {"rope_parameters": {**ROPE, "rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [4.0, 8.0],
                             "original_max_position_embeddings": 16}},
        "rope_type 'longrope'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LONG)
def test_rows_beyond_the_original_context_are_refused_by_name(kind: str) -> None:
    """Else a row's numbers would depend on the longest row beside it (and, with dynamic, before it)."""
    changes, said = LONG[kind]
    module = tiny_model("llama", **{"vocab_size": 258, "max_position_embeddings": 256, **changes})
    lm = LanguageModel(module=module, tokenizer=byte_tokenizer(bos=True), layout=layout_of(module.config))
    inside, beyond = list(range(2, 18)), list(range(2, 19))
    wanted = own(lm, inside)
    with torch.no_grad():
        hidden = positions.hidden_at(lm, [inside, inside[:4]], [0, 0], [(0, j) for j in range(16)])
    torch.testing.assert_close(blocks.logits(lm, hidden), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match=f"a row of 17 tokens is longer than 16: {said}"):
        positions.hidden_at(lm, [inside, beyond], [0, 0], [(1, 16)])
    ids, mask = tokens.pad([inside, beyond], lm.device)
    with pytest.raises(ModelError, match=said):
        blocks.run(lm, ids=ids, mask=mask)


def test_rows_beyond_learnt_positions_are_refused_by_name() -> None:
    module = tiny_model("gpt2", vocab_size=258, n_positions=8)
    lm = LanguageModel(module=module, tokenizer=byte_tokenizer(bos=True), layout=layout_of(module.config))
    with pytest.raises(ModelError, match="a row of 9 tokens is longer than 8: the model has no more positions"):
        positions.hidden_at(lm, [list(range(2, 11))], [0], [(0, 8)])


SAID: Mapping[str, tuple[dict[str, Any], tuple[int | None, ...]]] = {
    "mistral, the default": ({"model_type": "mistral"}, (4096,) * 3),
    "mistral, none": ({"model_type": "mistral", "sliding_window": None}, (None,) * 3),
    "qwen2, the default": ({"model_type": "qwen2"}, (None,) * 3),
    "qwen2, switched on": ({"model_type": "qwen2", "use_sliding_window": True}, (None,) * 3),
    "qwen2, from the second block": (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, (None, 8, 8)
    ),
    "qwen3, listed": (
        {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8,
         "layer_types": [attention.SLIDING, attention.FULL, attention.SLIDING]}, (8, None, 8)
    ),
    "llama": ({"model_type": "llama", "sliding_window": 8}, (None,) * 3),
    "gemma3, the default": ({"model_type": "gemma3_text"}, (4096,) * 3),
    "gemma3, every second": (
        {"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 2}, (8, None, 8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_config_json_says_what_the_loaded_configuration_says(case: str) -> None:
    from transformers import AutoConfig

    tree, wanted = SAID[case]
    raw = {"num_hidden_layers": 3, **tree}
    loaded = AutoConfig.for_model(**raw)
    assert attention.windows(raw) == attention.windows(loaded) == attention.windows(loaded.to_dict()) == wanted


@pytest.mark.parametrize(
    "tree",
    [
        {"model_type": "gemma9", "layer_types": ["full_attention", "chunked_attention"], "sliding_window": 8},
        {"model_type": "gemma9", "sliding_window": 8},
        {"model_type": "qwen2", "layer_types": ["sliding_attention", "full_attention"]},
    ],
)
def test_attention_of_another_kind_is_refused_by_name(tree: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"attention of kind .* is not modelled"):
        attention.windows({"num_hidden_layers": 2, **tree})


def test_side_memories_replay_with_the_window() -> None:
    """Earlier edits that WISE keeps are looked at through the same window."""
    lm = model("mistral, window")
    config = WiseConfig.model_validate({"layer": 1, "contexts": {"templates": []}})
    name = lm.layout.mlp_out.format(1)
    frozen = lm.logical(f"{name}.weight")
    job = training.SideMemoryTraining(lm, name, config, ("{}",), frozen, torch.ones_like(frozen))
    record = toy_records(1)[0]
    asked = tokens.encode(lm, tokens.join(record.prompt, record.target))
    with torch.no_grad(), hooks.capture(lm, [(name, "input")]) as seen:
        own(lm, asked)
    side = frozen + 0.1
    with torch.no_grad():
        moved = job._replay_distance((record.prompt, record.target), side)
    keys = seen[name, "input"][0]
    act = side_memory.mlp_activation(lm)
    wanted = (act(keys @ side.T) - act(keys @ frozen.T)).norm(dim=-1).mean()
    assert float(moved[0]) == pytest.approx(float(wanted), rel=1e-4)
