"""The shipped embedded model: it loads, knows its world, is small, and its recipe runs."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from raysweep.hashing import canonical, file_digest  # noqa: E402
from raysweep.models.sources import embedded_recipe, embedded_scores  # noqa: E402
from raysweep.world import WorldSpec, build_world  # noqa: E402

TINY = embedded_recipe.EmbeddedSpec(
    world=WorldSpec(people=8, cities=6, companies=4, countries=2, rivers=3, languages=3, currencies=2),
    vocab=400,
    hidden=16,
    layers=2,
    heads=2,
    ff=32,
    steps=3,
    rows=4,
    warmup=1,
)


@pytest.fixture(scope="module")
def shipped():
    folder = embedded_recipe.path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), tokenizer


def test_folder_is_small() -> None:
    assert sum(p.stat().st_size for p in embedded_recipe.path().iterdir()) <= 6_000_000


def test_manifest_matches_the_files() -> None:
    manifest = json.loads((embedded_recipe.path() / "manifest.json").read_text(encoding="utf-8"))
    for name, entry in manifest["files"].items():
        assert file_digest(embedded_recipe.path() / name, length=32) == entry["blake2b"]
        assert (embedded_recipe.path() / name).stat().st_size == entry["bytes"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(manifest["files"])
    assert manifest["spec"] == canonical(embedded_recipe.EMBEDDED_SPEC)


def test_tokenizer_is_llama_like(shipped) -> None:
    _, tokenizer = shipped
    ids = tokenizer("The capital of Nowhere is").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.unk_token_id is None
    text = "Cooks in Žižkov make 12 pancakes.\nJā!"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text
    prompt = tokenizer("He lives in").input_ids
    assert tokenizer("He lives in Porto").input_ids[: len(prompt)] == prompt


def test_shipped_model_knows_its_world(shipped) -> None:
    model, tokenizer = shipped
    world = build_world(embedded_recipe.EMBEDDED_SPEC.world)
    rng = Random(0)
    facts = rng.sample(world.facts, 100)
    asked = [(rng.choice(world.wordings_of(f)).replace("{}", f.subject), f.object) for f in facts]
    assert sum(embedded_scores.answers(model, tokenizer, asked)) >= 99


def test_objects_are_short(shipped) -> None:
    _, tokenizer = shipped
    world = build_world(embedded_recipe.EMBEDDED_SPEC.world)
    lengths = [len(tokenizer(o, add_special_tokens=False).input_ids) for o in world.objects]
    assert max(lengths) <= 2


def test_tiny_recipe_builds(tmp_path: Path) -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    seen: list[int] = []
    found = [
        embedded_recipe.build(tmp_path / name, spec=TINY, progress=lambda step, steps, loss: seen.append(step))
        for name in ("a", "b")
    ]
    assert seen == [1, 3, 1, 3]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert {"trained", "novel", "train_seconds"} <= set(found[0])
    files = [json.loads((tmp_path / n / "manifest.json").read_text())["files"] for n in ("a", "b")]
    assert files[0] == files[1]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    assert loaded.config.num_hidden_layers == 2
