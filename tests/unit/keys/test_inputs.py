"""What lies on disk and in the environment: change one thing and the planned key is another; move, rename or touch it and it is
not.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors

from raysweep import environment
from raysweep.config.schema import ModelSpec
from raysweep.editors.base import EditorConfig
from raysweep.errors import ModelError, SpecError
from raysweep.models.sources import catalogue, tokenizer_behaviour
from raysweep.models.sources.fingerprint import NEVER_READ, FileHashes, fingerprint
from raysweep.models.sources.load import load
from raysweep.results.runner import TrialRun
from raysweep.workspace import Workspace

from .conftest import JSON, OTHER, Planned


def replaced(old: str, new: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def appended(file: Path) -> None:
    with file.open("a", encoding="utf-8") as handle:
        handle.write(" ")


def one_weight(file: Path) -> None:
    state = load_file(file)
    state["model.layers.1.mlp.down_proj.weight"][0, 0] += 1e-6
    save_file(state, file, metadata={"format": "pt"})


# Every input on disk: the file, and a change that leaves it readable.
CHANGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    **{name: (f"m/{name}", appended) for name in (*JSON, *OTHER)},
    "weights": ("m/model.safetensors", one_weight),
    "configuration": ("m/config.json", replaced('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')),
    "tokenizer": ("m/tokenizer.json", replaced('"add_prefix_space": false', '"add_prefix_space": true')),
    "tokenizer's configuration": ("m/tokenizer_config.json", replaced('"pad_token": "</s>"', '"pad_token": "<s>"')),
    "records": ("zsre-edit.json", appended),
    "train file": ("zsre-train.json", appended),
    "text": ("text.txt", appended),
    "hyper-parameters": ("hparams/rome/m.yaml", replaced("[1]", "[0]")),
    "wrapper's hyper-parameters": ("hparams/simie/m.yaml", replaced("10", "11")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_file_is_in_the_key(what: str, root: Path, planned: Planned) -> None:
    before = planned().key
    assert planned().key == before
    file, change = CHANGES[what]
    change(root / file)
    assert planned().key != before


def test_the_list_of_files_is_the_folder(root: Path) -> None:
    changed = {file.removeprefix("m/") for file, _ in CHANGES.values() if file.startswith("m/")}
    assert changed == {p.relative_to(root / "m").as_posix() for p in (root / "m").rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "name", ["special_tokens_map.json", "merges.txt", "vocab.txt", "chat_template.jinja", "own.py", "x.json"]
)
def test_a_file_that_comes_or_goes_is_in_the_key(name: str, root: Path, planned: Planned) -> None:
    before = planned().key
    file = root / "m" / name
    if file.is_file():
        file.unlink()
    else:
        file.write_text("{}", encoding="utf-8")
    assert planned().key != before


def test_moving_renaming_touching_and_reading_change_nothing(root: Path, planned: Planned) -> None:
    before = planned().key
    for file in [p for p in root.rglob("*") if p.is_file()]:
        os.utime(file, (1, 1))
    assert planned().key == before
    (root / "elsewhere").mkdir()
    shutil.move(root / "m", root / "elsewhere" / "another name")
    assert planned(model={"name": "m", "path": "elsewhere/another name"}).key == before
    shutil.copytree(root / "elsewhere/another name", root / "copy")
    absolute = {"name": "m", "path": str(root / "copy")}
    assert planned(model=absolute).key == before
    load(ModelSpec.model_validate(absolute), Workspace(root))
    assert planned(model=absolute).key == before
    (root / "text.txt").rename(root / "renamed.txt")
    (root / "zsre-edit.json").rename(root / "other-edit.json")
    (root / "zsre-train.json").rename(root / "other-train.json")
    (root / "text.txt").symlink_to(root / "renamed.txt")
    assert planned(model=absolute, data={"name": "zsre", "path": "other-edit.json", "size": 3}).key == before


def test_what_no_loader_reads_changes_nothing(root: Path, planned: Planned) -> None:
    before = planned().key
    for pattern in NEVER_READ:
        (root / "m" / pattern.replace("*", "x")).write_text("x", encoding="utf-8")
    (root / "m/.git").mkdir()
    (root / "m/.git/HEAD").write_text("x", encoding="utf-8")
    (root / "m/pytorch_model.bin").write_text("not read beside safetensors", encoding="utf-8")
    (root / "m/config.json").write_text(
        json.dumps({**json.loads((root / "m/config.json").read_text(encoding="utf-8")), "transformers_version": "9"}),
        encoding="utf-8",
    )
    assert planned().key == before


@pytest.mark.parametrize("name", environment.VARIABLES)
def test_each_environment_variable_that_moves_numbers_is_in_the_key(
    name: str, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = planned().key
    monkeypatch.setenv(name, "1")
    assert planned().key != before
    monkeypatch.setenv(name, "")
    assert planned().key == before


@pytest.mark.parametrize(
    "name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYSWEEP_STORAGE", "PYTHONHASHSEED", "HF_HOME"]
)
def test_other_variables_are_not(name: str, planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned().key
    monkeypatch.setenv(name, "3")
    assert planned().key == before


def test_another_environment_than_the_plans_is_refused(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker on another node may have another environment: it computes nothing under this key."""
    trial = planned()
    environment.check(trial.environment)
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    said = r"ONEDNN_DEFAULT_FPMATH_MODE \(not set in the plan, BF16 here\)"
    with pytest.raises(SpecError, match=said):
        environment.check(trial.environment)
    job: Any = type("Job", (), {"trial": trial, "key": trial.key})
    store: Any = type("Store", (), {"fail": staticmethod(lambda *_, **__: None)})
    report = TrialRun(job, None, store).advance()  # type: ignore[arg-type]
    assert report.done
    assert "has another environment than the plan" in report.error


def test_threads_and_precision_are_what_the_trial_says_whatever_the_process_was_told(planned: Planned) -> None:
    assert planned(threads=2).key != planned().key
    seen: list[tuple[int, bool, str]] = []

    def begin(*_: object, **__: object) -> None:
        cuda, cpu = torch.backends.cuda.matmul.allow_tf32, torch.backends.mkldnn.matmul.fp32_precision
        seen.append((torch.get_num_threads(), cuda, cpu))
        raise RuntimeError("seen enough")

    nothing = staticmethod(lambda *_, **__: None)
    store: Any = type("Store", (), {"begin": staticmethod(begin), "fail": nothing})
    before = torch.get_num_threads()
    try:
        for precision in ("ieee", "tf32"):
            trial = planned(threads=1, model={"name": "m", "path": "m", "matmul": precision})
            job: Any = type("Job", (), {"trial": trial, "key": trial.key, "arm": "a", "point": {}})
            torch.set_num_threads(before + 1)
            torch.set_float32_matmul_precision("medium")
            assert TrialRun(job, None, store).advance().error == "RuntimeError: seen enough"  # type: ignore[arg-type]
            assert torch.get_float32_matmul_precision() == "medium", "nothing of a trial stays behind"
        assert seen == [(1, False, "ieee"), (1, True, "ieee")], "the CPU never rounds"
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision("highest")


def test_nothing_multiplies_matrices_with_numpy() -> None:
    """BLAS under numpy has threads and code paths of its own, which no key knows of.

    ``intervals.py`` may: a reader computes intervals from rows, none is stored under a key.
    """
    package = Path(environment.__file__).parent
    for file in package.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        if "numpy" not in names or file.name == "intervals.py":
            continue
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "np"}
        assert not used & {"dot", "matmul", "linalg", "einsum", "inner", "tensordot", "vdot"}, file
        product = any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.MatMult) for n in ast.walk(tree))
        assert not product or "torch" in names, file


class TestBehaviour:
    """Equal files may be tokenised otherwise; what the plan saw is what is loaded, or nothing is."""

    def test_the_policy_is_a_part_of_it(self, planned: Planned) -> None:
        found = {
            bos: planned(model={"name": "m", "path": "m", "bos": bos}) for bos in ("tokenizer", "none", "<s>", "</s>")
        }
        assert len({t.model.tokenizer_digest for t in found.values()}) == 4
        assert len({t.model.digest for t in found.values()}) == 1
        assert planned(model={"name": "m", "path": "m", "bos": "auto"}).key == found["tokenizer"].key

    @pytest.mark.parametrize("change", ["processor", "prefix", "normalizer", "pad", "token"])
    def test_the_battery_tells_tokenizers_apart(self, change: str, root: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        def made() -> Any:
            return PreTrainedTokenizerFast.from_pretrained(root / "m")

        other = made()
        backend: Tokenizer = other.backend_tokenizer
        if change == "processor":
            backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
        elif change == "prefix":
            backend.pre_tokenizer.add_prefix_space = True
        elif change == "normalizer":
            from tokenizers.normalizers import NFC

            backend.normalizer = NFC()
        elif change == "token":
            other.add_special_tokens({"unk_token": "<unk>"})
        else:
            other = made()
            other.pad_token = "<s>"
        assert tokenizer_behaviour.tokenizer_digest(made(), ()) == tokenizer_behaviour.tokenizer_digest(made(), ())
        assert tokenizer_behaviour.tokenizer_digest(other, ()) != tokenizer_behaviour.tokenizer_digest(made(), ())
        assert tokenizer_behaviour.tokenizer_digest(made(), (0,)) != tokenizer_behaviour.tokenizer_digest(made(), ())

    def test_a_worker_that_would_tokenise_otherwise_refuses(self, root: Path, planned: Planned) -> None:
        spec = planned().model
        load(spec, Workspace(root))
        with pytest.raises(ModelError, match="gives other tokens than the plan saw") as caught:
            load(spec.model_copy(update={"tokenizer_digest": "feed"}), Workspace(root))
        assert "plan again" in caught.value.hint

    def test_a_known_tokenizer_is_not_opened_again(
        self, root: Path, planned: Planned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = planned()

        def never(*_: object) -> None:
            raise AssertionError("opened again")

        with monkeypatch.context() as patch:
            patch.setattr("raysweep.models.sources.tokenizers.open_tokenizer", never)
            assert planned().key == first.key
            patch.setattr(tokenizer_behaviour, "packages", lambda: {"transformers": "another"})
            with pytest.raises(AssertionError, match="opened again"):
                planned()
        shutil.rmtree(root / "artifacts/tokenizers")
        (root / "artifacts/tokenizers").write_text("no folder can be made here", encoding="utf-8")
        assert planned().key == first.key

    def test_a_damaged_record_counts_as_none(self, root: Path, planned: Planned) -> None:
        first = planned().key
        (record,) = (root / "artifacts/tokenizers").iterdir()
        record.write_text("{", encoding="utf-8")
        assert planned().key == first
        assert json.loads(record.read_text(encoding="utf-8"))["tokenizer_digest"]

    def test_a_gguf_file_follows_the_same_rule(self, tmp_path: Path) -> None:
        """The file whole, and what its tokenizer does: a flag in the metadata is seen by both."""
        pytest.importorskip("gguf", reason="the gguf package is not installed")
        from tests.unit.models.test_gguf import write_gguf

        workspace, seen = Workspace(tmp_path), []
        for change in (lambda _: None, lambda writer: writer.add_add_bos_token(True)):
            file = write_gguf(tmp_path / "m.gguf", change=change)
            spec = catalogue.resolve(ModelSpec(name="x", path=str(file)), workspace)
            load(spec, workspace)
            seen.append((spec.digest, spec.tokenizer_digest))
        assert len({d for pair in seen for d in pair}) == 4

    def test_a_trained_model_follows_the_same_rule(self, root: Path) -> None:
        from tests.golden.sketches import SETTING

        (root / "tiny.yaml").write_text(SETTING, encoding="utf-8")
        workspace, digests = Workspace(root), set()
        for bos, length in (("tokenizer", 2), ("none", 1), ("</s>", 2)):
            spec = catalogue.resolve(ModelSpec(name="tiny", path="tiny.yaml", bos=bos), workspace)
            lm = load(spec, workspace)
            digests.add(spec.tokenizer_digest)
            assert len([*lm.bos, *lm.tokenizer("was")["input_ids"]]) == length
            assert tokenizer_behaviour.tokenizer_digest(lm.tokenizer, lm.bos) == spec.tokenizer_digest
        assert len(digests) == 3


class TestFiles:
    """Fingerprints of folders and files."""

    def test_one_byte_anywhere_in_a_large_file_is_seen(self, tmp_path: Path) -> None:
        path, memory = tmp_path / "big.gguf", tmp_path / "memory"
        with path.open("wb") as handle:
            handle.write(b"GGUF")
            handle.truncate(20 << 20)
        seen = {fingerprint(path, memory).digest}
        for offset in (5, 1 << 20, 7_654_321, (20 << 20) - 1):
            with path.open("r+b") as handle:
                handle.seek(offset)
                handle.write(b"x")
            os.utime(path, (1, 1))
            seen.add(fingerprint(path, memory).digest)
        assert len(seen) == 5

    def test_the_hash_of_a_large_file_is_remembered_until_it_is_written_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from raysweep.models.sources import fingerprint as module

        monkeypatch.setattr(module, "_LARGE", 3)
        monkeypatch.setattr(module, "_SETTLED", -1.0)
        file, hashes = tmp_path / "w", FileHashes(tmp_path / "memory")
        file.write_bytes(b"abcd")
        os.utime(
            file, (1, file.stat().st_mtime)
        )  # last read long ago: reading it now moves that time, and nothing else
        read: list[str] = []
        real = module.file_digest
        monkeypatch.setattr(module, "file_digest", lambda f, **k: read.append(f.name) or real(f, **k))
        first = hashes.hash_of(file)
        assert (hashes.hash_of(file), read) == (first, ["w"])
        os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
        assert (hashes.hash_of(file), read) == (first, ["w", "w"]), "its status has changed: it is read again"
        times = file.stat()
        file.write_bytes(b"abce")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # another content with the old time
        assert hashes.hash_of(file) != first

    def test_an_adapter_is_refused(self, root: Path) -> None:
        (root / "m/adapter_config.json").write_text("{}", encoding="utf-8")
        with pytest.raises(ModelError, match="holds an adapter") as caught:
            fingerprint(root / "m")
        assert "merge" in caught.value.hint

    def test_code_in_another_repository_is_refused(self, root: Path, planned: Planned) -> None:
        (root / "m/tokenizer_config.json").write_text(
            json.dumps({"auto_map": {"AutoTokenizer": [None, "them/code--tok.Own"]}}), encoding="utf-8"
        )
        with pytest.raises(SpecError, match=r"auto_map takes code from another repository: them/code--tok\.Own"):
            planned(model={"name": "m", "path": "m", "trust_remote_code": True})

    def test_shards_that_an_index_names_below_the_folder_are_hashed(self, root: Path) -> None:
        folder = root / "m"
        (folder / "shards").mkdir()
        (folder / "model.safetensors").rename(folder / "shards/a.safetensors")
        shutil.copy(folder / "shards/a.safetensors", folder / "b.safetensors")
        index = {"weight_map": {"x": "shards/a.safetensors", "y": "b.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        before = fingerprint(folder)
        one_weight(folder / "shards/a.safetensors")
        after = fingerprint(folder)
        assert (before.digest != after.digest, before.tokenizer) == (True, after.tokenizer)


class TestHub:
    """A branch is a name that moves; the key holds the commit."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    @pytest.fixture
    def cached(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Put the model into the hub's local cache, as ``them/model@main``."""
        from huggingface_hub import constants

        cache = root / "hub"
        snapshot = cache / "models--them--model/snapshots" / self.COMMIT
        shutil.copytree(root / "m", snapshot)
        (cache / "models--them--model/refs").mkdir()
        (cache / "models--them--model/refs/main").write_text(self.COMMIT, encoding="utf-8")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        return snapshot

    def test_one_that_is_not_here_has_a_key_that_says_so(self, root: Path) -> None:
        spec = catalogue.resolve(ModelSpec(name="nobody/model"), Workspace(root))
        assert (spec.digest, spec.tokenizer_digest, spec.provisional) == ("hub:nobody/model@main", "", True)
        with pytest.raises(ModelError, match="the key does not cover hub model 'nobody/model'"):
            load(spec, Workspace(root))

    def test_one_that_is_here_has_its_commit_and_tokenizer(self, root: Path, cached: Path) -> None:
        workspace = Workspace(root)
        spec = catalogue.resolve(ModelSpec(name="them/model"), workspace)
        assert (spec.digest, spec.provisional) == (f"hub:them/model@{self.COMMIT}", False)
        assert spec.tokenizer_digest == catalogue.resolve(ModelSpec(path="m"), workspace).tokenizer_digest
        lm = load(spec, workspace)
        assert lm.digest == spec.digest
        assert torch.equal(lm.weight("model.norm.weight"), load_file(cached / "model.safetensors")["model.norm.weight"])

    def test_run_asks_the_hub_before_it_plans(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []

        def fetch(repository: str, spec: ModelSpec) -> str:
            asked.append(repository)
            raise ModelError("hub model 'nobody/model' cannot be loaded: out of reach")

        monkeypatch.setattr("raysweep.models.sources.tokenizers.fetch_tokenizer", fetch)
        with pytest.raises(ModelError, match="out of reach"):
            catalogue.resolve(ModelSpec(name="nobody/model"), Workspace(root), fetch=True)
        assert asked == ["nobody/model"]


def test_a_configuration_is_frozen() -> None:
    """Nothing changes what a key was made of after it was made."""
    assert EditorConfig.model_config["frozen"]
    with pytest.raises(ValueError, match="frozen"):
        ModelSpec().name = "x"  # type: ignore[misc]
