"""Rows that may be too long, and attention that is not modelled, are refused by name at validation, from config.json alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raysweep.cli.main import main
from raysweep.config import rows
from raysweep.config.shared_specs import ContextSpec, MomentSpec
from raysweep.editors.rome import RomeConfig
from raysweep.editors.wrappers.simie.config import Energy, SimIEConfig
from raysweep.records import EditRecord, Probe, ProbeKind
from raysweep.testing.layout_contract import tiny_model
from tests.unit.models.conftest import byte_tokenizer

DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}  # as checkpoints before transformers 5 write it
LONG = {"rope_parameters": {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4, "short_factor": [1.0, 1.0],
                            "long_factor": [2.0, 4.0], "original_max_position_embeddings": 40}}  # fmt: skip
ROME = "{name: rome, layers: [1], moments: {width: 512}}"


Validate = Callable[[str], tuple[int, str]]


@pytest.fixture
def validate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Validate:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")

    def call(editor: str) -> tuple[int, str]:
        space = tmp_path / "space.yaml"
        space.write_text(
            f"sweep: x\nbase:\n  model: {{name: m, path: {tmp_path / 'm'}}}\n"
            "  data: {name: zsre, path: data/ZsRE/sample.json, size: 5}\n"
            f"  protocol: {{rounds: [0]}}\narms:\n  a: {{editor: {editor}}}\n"
        )
        code = main(["--root", str(tmp_path), "validate", str(space)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def folder(root: Path, kind: str = "llama", **changes: Any) -> None:
    """Write a model folder whose weights nobody can read: the file is an empty header."""
    out = root / "m"
    tiny_model(kind, vocab_size=259).config.save_pretrained(out)
    tree = json.loads((out / "config.json").read_text())
    if "rope_scaling" in changes:
        del tree["rope_parameters"]
    (out / "config.json").write_text(json.dumps(tree | changes))
    byte_tokenizer().save_pretrained(out)
    (out / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


@pytest.mark.parametrize(("changes", "kind"), [(DYNAMIC, "dynamic"), (LONG, "longrope")])
def test_rows_that_would_depend_on_others_are_refused(
    changes: dict[str, Any], kind: str, tmp_path: Path, validate: Validate
) -> None:
    folder(tmp_path, max_position_embeddings=40, **changes)
    code, said = validate(ROME)
    assert code == 2
    assert f"model 'm' takes rows of at most 40 tokens, because rope_type '{kind}'" in said
    assert "record zsre/00000" in said
    assert "may have" in said
    assert "model of another rope_type (default, linear, llama3, yarn)" in said
    assert "moments.width reads rows of 512" in said
    assert "set moments.width: 40" in said


@pytest.mark.parametrize(
    ("editor", "limit", "code"),
    [(ROME, 512, 0), (ROME, 511, 2), ("{name: ft, layers: [1]}", 300, 0), ("{name: ft, layers: [1]}", 60, 2)],
)
def test_what_is_always_short_enough_is_accepted(
    editor: str, limit: int, code: int, tmp_path: Path, validate: Validate
) -> None:
    folder(tmp_path, max_position_embeddings=limit, **DYNAMIC)
    assert validate(editor)[0] == code


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mistral", {"sliding_window": 4, "max_position_embeddings": 300}),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "max_position_embeddings": 300},
        ),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "max_position_embeddings": 300}),
        (
            "llama",
            {
                "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4},
                "max_position_embeddings": 300,
            },
        ),
    ],
)
def test_windows_and_fixed_scaling_are_modelled(
    kind: str, changes: dict[str, Any], tmp_path: Path, validate: Validate
) -> None:
    folder(tmp_path, kind, **changes)
    assert validate(ROME)[0] == 0


def test_attention_of_another_kind_is_refused(tmp_path: Path, validate: Validate) -> None:
    folder(tmp_path, "qwen2", layer_types=["full_attention", "chunked_attention", "full_attention"])
    code, said = validate(ROME)
    assert code == 2
    assert "attention of kind chunked_attention is not modelled" in said


def test_bytes_bound_tokens_and_contexts_count() -> None:
    probe = Probe(kind=ProbeKind.LOCALITY, prompt="é" * 9, target="x")
    one = EditRecord(id="a", subject="s", prompt="s is", target="t", probes=(probe,))
    other = EditRecord(id="b", subject="s", prompt="s is", target="t", probes=(), unrelated="u" * 30)
    assert rows.longest_text([one]) == (18 + 3 + rows.ASIDE, "a")
    assert rows.longest_text([one, other]) == (30 + rows.ASIDE, "b")
    assert rows.longest_text([]) == (0, "")
    assert rows.context_tokens(RomeConfig(layers=(1,))) == 12
    assert (
        rows.context_tokens(RomeConfig(layers=(1,), contexts=ContextSpec(lengths=((5, 1),), templates=("é {}",)))) == 5
    )
    assert list(SimIEConfig(lam=Energy(energy=0.1)).text_rows()) == [(512, "lam.energy")]
    assert list(RomeConfig(layers=(1,), moments=MomentSpec(width=64)).text_rows()) == [(64, "moments.width")]
