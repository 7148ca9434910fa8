import pytest

from raysweep.config.load import parse
from raysweep.config.places import Place, Source
from raysweep.config.space import Grid
from raysweep.config.sweep import find_file, load_search_space, parse_search_space
from raysweep.config.sweep_schema import SweepSpec
from raysweep.errors import NameUnknownError, ProblemsError
from raysweep.workspace import Workspace, package_share
from tests.unit.config.fakes import SWEEP, sweep


def complaints(text, *overrides):
    with pytest.raises(ProblemsError) as caught:
        parse_search_space(parse(text, "x.yaml"), overrides)
    return [str(p) for p in caught.value.problems]


def test_names_and_mappings_are_the_same():
    spec = sweep()
    assert spec.base["model"] == {"name": "tiny"}
    assert spec.arm("surgeon").editor.config == {"layers": [2]}
    assert [w.name for w in spec.arm("ridge").editor.wrap] == ["ridge"]
    assert [arm.name for arm in spec.arms] == ["plain", "surgeon", "ridge"]


def test_wrap_may_be_a_list_of_names_and_mappings():
    spec = sweep(SWEEP + "  two: {editor: plain, wrap: [ridge, {name: other, k: 1}]}\n")
    assert [(w.name, dict(w.config)) for w in spec.arm("two").editor.wrap] == [("ridge", {}), ("other", {"k": 1})]


def test_dump_reads_back():
    spec = sweep(SWEEP + "space: {seed: {grid: [0, 1]}, wrap.ridge.lam: {loguniform: [1, 2]}}")
    dumped = spec.model_dump(mode="json")
    assert dumped["space"]["seed"] == {"grid": [0, 1]}
    assert SweepSpec.model_validate(dumped).model_dump(mode="json") == dumped


def test_a_tree_without_a_file():
    spec = parse_search_space({"sweep": "e", "arms": {"a": {"editor": "plain"}}}, overrides=["seed=3"])
    assert spec.base == {"seed": 3}


def test_unknown_arm():
    with pytest.raises(NameUnknownError, match="unknown arm 'surgon' in sweep 'x'\n    did you mean: surgeon"):
        sweep().arm("surgon")


def test_every_mistake_is_reported_at_once():
    text = "swep: x\nbase: {modl: a}\narms:\n  a: {editr: plain}\nspace: {seed: [0]}\nresources: {gpu: -1}\n"
    found = complaints(text)
    assert len(found) == 7
    assert found[0].startswith(
        "error[E-SPEC] x.yaml:1:1  unknown key 'swep' in a search space\n    did you mean: sweep"
    )
    assert any("x.yaml:2:8  unknown key 'modl' in base\n    did you mean: model" in p for p in found)
    assert any("x.yaml:4:7  unknown key 'editr' in arm 'a'\n    did you mean: editor" in p for p in found)
    assert any("x.yaml:4:3  arm 'a' needs the key 'editor'" in p for p in found)
    assert any("x.yaml:5:15  seed: a domain must say what it is; write {grid: [0]}" in p for p in found)
    assert any("x.yaml:6:18  resources: gpu: should be 'auto' or should be greater" in p for p in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml  the file is empty\n    a search space starts with"),
        ("- 1", "x.yaml:1:1  a search space is a mapping of keys"),
        ("arms: {a: {editor: plain}}", "needs the key 'sweep'"),
        ("sweep: a/b\narms: {a: {editor: plain}}", "x.yaml:1:8  sweep: 'a/b' is no folder name"),
        ("sweep: 3\narms: {a: {editor: plain}}", "x.yaml:1:8  sweep: 3 is no folder name"),
        ("sweep: x", "a search space needs at least one arm"),
        ("sweep: x\narms: [a]", "x.yaml:2:7  arms must be a mapping, got ['a']"),
        ("sweep: x\narms: {a: plain}", "x.yaml:2:11  arm 'a' must be a mapping\n    a: {editor: plain}"),
        ("sweep: x\nstudy: [1]\narms: {a: {editor: plain}}", "x.yaml:2:8  study must be a name, got [1]"),
        ("sweep: x\narms: {a: {editor: 3}}", "x.yaml:2:20  this editor must be a name or a mapping with one, got 3"),
        ("sweep: x\narms: {a: {editor: null}}", 'quote the name: "null"'),
        ("sweep: x\narms: {a: {editor: {layers: [1]}}}", "this editor needs the key 'name'\n    {name: …, layers}"),
        ("sweep: x\narms: {a: {editor: {name: 3}}}", "x.yaml:2:27  the name of this editor must be text, got 3"),
        ("sweep: x\narms: {a: {editor: plain, wrap: [r, r]}}", "x.yaml:2:33  wrapper 'r' is written twice in arm 'a'"),
        ("sweep: x\nbase: {protocol: [1]}\narms: {a: {editor: plain}}", "x.yaml:2:18  protocol must be a mapping"),
        ("sweep: x\nbase: {data: {digest: q}}\narms: {a: {editor: plain}}", "x.yaml:2:15  'data.digest' is filled in"),
        (
            "sweep: x\nsearch: {mode: best}\narms: {a: {editor: plain}}",
            "search: mode: should be 'max' or 'min', got 'best'",
        ),
        (
            "sweep: x\nsearch: {smples: 2}\narms: {a: {editor: plain}}",
            "unknown key 'smples' in search\n    did you mean: s",
        ),
    ],
)
def test_mistakes_of_form(text, message):
    assert any(message in p for p in complaints(text))


class TestOverrides:
    def test_base_keys(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        spec = sweep(SWEEP, "data.path=../a b.json", "protocol.rounds=[0, 5]", "base.threads=2", "model.dtype=bfloat16")
        assert spec.base["data"] == {"name": "hundred", "size": 20, "path": str(tmp_path.parent / "a b.json")}
        assert spec.base["protocol"] == {"rounds": [0, 5]}
        assert spec.base["threads"] == 2
        assert spec.base["model"] == {"name": "tiny", "dtype": "bfloat16"}
        assert f"data.path={tmp_path.parent / 'a b.json'}" in spec.source.overrides

    def test_another_name_keeps_what_is_not_tied_to_the_old_one(self):
        text = SWEEP.replace("size: 20", "size: 20, path: a.json")
        assert sweep(text, "data=other").base["data"] == {"name": "other", "size": 20}

    def test_arms(self):
        text = SWEEP + "  ridge λ0.5: {editor: plain, wrap: [ridge]}\n"
        spec = sweep(
            text,
            "arms.surgeon.editor.layers=[1]",
            "arms.ridge.wrap.ridge.lam=3",
            "arms.ridge λ0.5.wrap.ridge.lam=0.5",
            "arms.plain.data.size=5",
            "arms.plain.space.seed={grid: [1]}",
            "arms.surgeon.wrap=ridge",
        )
        assert spec.arm("surgeon").editor.config == {"layers": [1]}
        assert spec.arm("ridge").editor.wrap[0].config == {"lam": 3}
        assert spec.arm("ridge λ0.5").editor.wrap[0].config == {"lam": 0.5}
        assert spec.arm("plain").base == {"data": {"size": 5}}
        assert spec.arm("plain").space == {"seed": Grid((1,))}
        assert [w.name for w in spec.arm("surgeon").editor.wrap] == ["ridge"]

    def test_the_rest(self):
        spec = sweep(SWEEP, "space.wrap.ridge.lam={grid: [1]}", "search.samples=3", "resources.gpu=0.5", "sweep=y")
        assert (spec.name, spec.search.samples, spec.resources.gpu) == ("y", 3, 0.5)
        assert spec.space == {"wrap.ridge.lam": Grid((1,))}

    def test_a_whole_arm_may_be_replaced(self):
        assert sweep(SWEEP, "arms.plain={editor: memory}").arm("plain").editor.name == "memory"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("dat.size=3", "--set dat.size=3  unknown key 'dat'\n    did you mean: data"),
            ("data", "--set data  an override is written key=value"),
            ("=3", "an override is written key=value"),
            ("arms.surgon.editor=x", "unknown arm 'surgon'\n    did you mean: surgeon"),
            ("editor.rate=3", "an arm's own keys are written arms.<arm>.editor.rate"),
            ("base.modl=3", "unknown key 'modl' in base\n    did you mean: model"),
            ("arms.plain.wrap.ridge.lam=1", "this arm has no wrapper 'ridge'"),
            ("threads.x=1", "'threads.x' leads into 'base.threads', which is no mapping"),
            ("data=[1", "error[E-YAML] --set data=[1"),
            (
                "search.samplr=grid",
                "--set search.samplr=grid  unknown key 'samplr' in search\n    did you mean: sampler",
            ),
            ("space.seed=[0]", "--set space.seed=[0]  seed: a domain must say what it is"),
            ("data.path=" + "x" * 200, ""),
        ],
    )
    def test_mistakes_are_located_at_the_override(self, override, message):
        text = SWEEP.replace("base:", "base:\n  threads: 1")
        if message:
            assert any(message in p for p in complaints(text, override))
        else:
            assert len(complaints(text, override, "sweep=a b")) == 1


class TestFinding:
    def test_by_path_and_by_name(self, tmp_path):
        (tmp_path / "search_spaces").mkdir()
        file = tmp_path / "search_spaces" / "x.yaml"
        file.write_text(SWEEP)
        workspace = Workspace(tmp_path)
        assert find_file(str(file), workspace) == file
        assert find_file("x", workspace) == find_file("x.yaml", workspace) == file
        assert load_search_space("search_spaces/x.yaml", workspace).name == "x"

    def test_unknown_name(self, tmp_path):
        (tmp_path / "search_spaces").mkdir()
        (tmp_path / "search_spaces" / "demo.yaml").write_text(SWEEP)
        with pytest.raises(NameUnknownError, match=r"no search space 'dmo'.*\n    did you mean: demo"):
            load_search_space("dmo", Workspace(tmp_path, share=tmp_path))


def test_the_readmes_example_reads():
    text = (package_share() / "search_spaces" / "README.md").read_text(encoding="utf-8")
    example = text.split("```yaml\n")[1].split("```")[0]
    assert len(parse_search_space(parse(example)).arms) == 4


def test_every_shipped_space_reads():
    workspace = Workspace(package_share())
    for name in workspace.spaces():
        spec = load_search_space(name, workspace)
        assert spec.name == name
        assert spec.source.text.startswith(f"# raysweep run {name}"), "the first line is the command that runs it"


def test_what_is_laid_over_one_key_is_not_to_blame_for_its_neighbours():
    """Flags of ``raysweep edit`` have no places of their own; an error about ``--data`` named ``--set model.name=…``."""
    tree = {"base": {"model": {"name": "m"}, "data": {"name": "zsre"}}, "arms": {"a": {"editor": "ft"}}}
    source = Source("flags", tree=tree)
    laid = source.replaced(("base", "model", "name"), tree, Place("--set model.name=x"), "model.name=x")
    assert laid.value(("base", "model", "name")).file == "--set model.name=x"
    assert laid.value(("base", "data", "name")).file == "flags"
    laid = laid.replaced(("base", "protocol", "rounds"), tree, Place("--set rounds"), "")
    assert laid.value(("base", "protocol", "batch_size")).file == "--set rounds"
