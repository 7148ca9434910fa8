"""The belief spaces: planned where their files are, refused with what is missing where not, and as published where published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raysweep.belief.graph.graph import graph_from_names
from raysweep.belief.graph.synthetic import SyntheticSpec, write_wikidata
from raysweep.belief.lm import tokenizer
from raysweep.belief.lm.architecture import SHAPES
from raysweep.belief.spec import PretrainSpec
from raysweep.belief.testbed import read_setting
from raysweep.config.plan import plan
from raysweep.config.sweep import load_search_space
from raysweep.errors import ProblemsError
from raysweep.workspace import Workspace

ROOT = Path(__file__).parents[3]
LARGE = {"belief_10k": 1, "belief_100k": 1, "belief_one_gpu": 3}
# Where the shipped settings are too large for a test: the same, smaller.
SMALLER = {
    r"num_atomic_facts: \d+": "num_atomic_facts: 120",
    r"points: {size: \d+": "points: {size: 12",
    r"min_cooccurrences: \d+": "min_cooccurrences: 5",
    r"read_n_facts: \d+": "read_n_facts: -1",
    r"rounds: \[.*?\]": "rounds: [0, 6, 12]",
}


@pytest.mark.parametrize(("name", "arms"), [("belief_demo", 5), ("belief_lifelong", 4)])
def test_spaces_of_the_embedded_world_plan(name: str, arms: int, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    planned = plan(load_search_space(name, workspace), workspace)
    assert len(planned.trials) == arms
    assert len({trial.trial.model.digest for trial in planned.trials}) == 1, "all arms share one trained model"


@pytest.mark.parametrize("name", LARGE)
def test_missing_files_are_named_before_anything_starts(name: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(ProblemsError) as told:
        plan(load_search_space(name, workspace), workspace)
    said = {p.message for p in told.value.problems}
    assert any(m.startswith(f"Wikidata5m: {tmp_path / 'data' / 'wikidata5m'} lacks wikidata5m") for m in said), said
    assert all("raysweep data fetch wikidata5m" in p.hint for p in told.value.problems)
    assert all(p.line for p in told.value.problems)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(("name", "arms"), LARGE.items())
def test_where_the_files_lie_the_large_spaces_plan(name: str, arms: int, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    stem = name.replace("_", "-")
    for file in (f"hparams/belief/{stem}.yaml", f"search_spaces/{name}.yaml"):
        text = (ROOT / file).read_text()
        for pattern, small in SMALLER.items():
            text = re.sub(pattern, small, text)
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    (tmp_path / "data/wikidata5m").mkdir(parents=True)
    write_wikidata(tmp_path / "data/wikidata5m", SyntheticSpec(subjects=120, arrows=5))
    if "one_gpu" not in name:
        with pytest.raises(ProblemsError, match="tokenizer"):
            plan(load_search_space(name, workspace), workspace)
        folder = tmp_path / "models/mistral-7b"
        folder.mkdir(parents=True)
        words = tokenizer.word_tokenizer(graph_from_names([("a", "b", "c"), ("a", "d", "e")]))
        words.backend_tokenizer.save(str(folder / "tokenizer.json"))
    planned = plan(load_search_space(name, workspace), workspace)
    assert len(planned.trials) == arms
    assert {t.trial.data.size for t in planned.trials} == {12}


def test_published_settings_are_the_published_ones() -> None:
    small, paper = (read_setting(ROOT / f"hparams/belief/belief-{name}.yaml") for name in ("10k", "100k"))
    for setting in (small, paper):
        recipe = setting.pretrain
        assert recipe is not None
        assert (setting.graph.source, setting.graph.relations, setting.graph.read_n_facts) == (
            "wikidata5m",
            10,
            2_000_000,
        )
        assert (setting.generative.samples, setting.generative.min_true_prob) == (10, 0.6)
        assert recipe.model == SHAPES["mistral-83m"]
        assert recipe.batch * recipe.accumulation == 128
        published = PretrainSpec(model=recipe.model)
        for name in (
            "lr",
            "betas",
            "weight_decay",
            "clip",
            "warmup",
            "final_lr",
            "extension",
            "evals",
            "text_weight",
            "optimiser",
        ):
            assert getattr(recipe, name) == getattr(published, name), name
    assert small.pretrain is not None
    assert paper.pretrain is not None
    assert (small.corpus.num_atomic_facts, small.pretrain.tokens, small.points.size) == (10_000, 50_000_000, 1000)
    assert not small.corpus.true_false
    assert (paper.corpus.num_atomic_facts, paper.pretrain.tokens, paper.points.size) == (100_000, 1_000_000_000, 5000)
    assert paper.corpus.true_false
    assert paper.corpus.connectives
    assert (paper.corpus.max_sentences_per_doc, paper.corpus.homogeneous, paper.corpus.heterogeneous) == (10, 5, 0)
    assert paper.corpus.connective_instances_per_subject == 20
