import pytest

from raysweep.config.load import parse
from raysweep.config.plan import bind, plan
from raysweep.config.points import domains
from raysweep.config.space import Grid
from raysweep.config.sweep import parse_search_space
from raysweep.errors import NameUnknownError, ProblemsError
from raysweep.metrics import DEFAULT_METRICS, METRICS
from raysweep.workspace import Workspace
from tests.unit.config.fakes import SWEEP, components, sweep, with_space


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path, share=tmp_path)


def planned(spec, workspace):
    return plan(spec, workspace, components())


def complaints(spec, workspace):
    with pytest.raises(ProblemsError) as caught:
        planned(spec, workspace)
    return [str(p) for p in caught.value.problems]


def column(text, word):
    (line,) = (line for line in text.splitlines() if word in line)
    return line.index(word) + 1


def write(workspace, path, text):
    file = workspace.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


class TestTrials:
    def test_one_trial_per_arm_without_a_space(self, workspace):
        found = planned(sweep(), workspace)
        assert [t.arm for t in found.trials] == ["plain", "surgeon", "ridge"]
        assert found.notes == ()

    def test_a_trial_is_closed(self, workspace):
        trial = planned(sweep(), workspace).trials[2].trial
        assert trial.model.digest == "m-tiny"
        assert trial.model.bos == "none"
        assert (trial.data.digest, trial.data.size) == ("d1", 20)
        assert trial.editor.config.model_dump(mode="json") == {
            "layers": [2],
            "rate": 1.0,
            "moments": {
                "text": {"name": "dataset", "path": "", "tokens": 100_000, "digest": "t-dataset-d1"},
                "samples": 10,
            },
        }
        assert trial.editor.wrap[0].config.model_dump(mode="json") == {
            "lam": 1.0,
            "blur": {"width": 1.0},
            "mode": "sequential",
        }
        assert trial.versions == {f"metric/{name}": METRICS[name].version for name in DEFAULT_METRICS} | {
            "dataset/hundred": 5,
            "editor/surgeon": 3,
            "protocol": 1,
            "study/lifelong": 7,
            "wrapper/ridge": 2,
        }

    def test_size_zero_means_what_is_left(self, workspace):
        found = planned(sweep(SWEEP, "data.size=0", "data.skip=30"), workspace)
        assert found.trials[0].trial.data.size == 70

    def test_spelling_of_a_number_does_not_change_the_key(self, workspace):
        keys = [
            planned(sweep(SWEEP, f"arms.ridge.wrap.ridge.lam={lam}"), workspace).trials[2].key
            for lam in ("10", "10.0", "1e1")
        ]
        assert len(set(keys)) == 1

    def test_path_is_not_in_the_key_and_is_made_absolute(self, workspace):
        found = planned(sweep(SWEEP.replace("size: 20", "size: 20, path: sub/a.json")), workspace)
        assert found.trials[0].trial.data.path == str(workspace.root / "sub/a.json")
        assert found.trials[0].key == planned(sweep(), workspace).trials[0].key

    def test_arm_replaces_base_keys(self, workspace):
        text = SWEEP + "  small: {editor: plain, data: {size: 5}, protocol: {rounds: [0, 5]}, threads: 2, seed: 4}\n"
        trial = planned(sweep(text), workspace).trials[-1].trial
        assert (trial.data.name, trial.data.size) == ("hundred", 5)
        assert (trial.protocol.rounds, trial.threads, trial.seed) == ((0, 5), 2, 4)

    def test_arm_with_another_name_does_not_inherit_the_path(self, workspace):
        text = SWEEP + "  other: {editor: plain, data: other, model: {name: big}}\n"
        trial = planned(sweep(text, "data.path=a.json", "model.path=m"), workspace).trials[-1].trial
        assert (trial.data.path, trial.data.size, trial.model.path) == ("", 20, "")


class TestPoints:
    def test_draws_are_crossed_with_grids_and_seeds_are_paired(self, workspace):
        found = planned(with_space("{seed: {grid: [0, 1, 2]}, wrap.ridge.lam: {loguniform: [0.1, 10]}}"), workspace)
        by_arm = {a: [t.point for t in found.trials if t.arm == a] for a in ("plain", "surgeon", "ridge")}
        assert len(by_arm["plain"]) == 3
        assert len(by_arm["ridge"]) == 4 * 3
        lams = [p["wrap.ridge.lam"] for p in by_arm["ridge"]]
        assert len(set(lams)) == 4
        assert lams[0] == lams[1] == lams[2]
        assert [p["seed"] for p in by_arm["ridge"][:3]] == [0, 1, 2]

    def test_an_added_key_or_arm_moves_no_other_draw(self, workspace):
        few = with_space("{wrap.ridge.lam: {uniform: [1, 2]}}")
        more = with_space("{editor.rate: {uniform: [1, 2]}, wrap.ridge.lam: {uniform: [1, 2]}, seed: {grid: [0]}}")
        lams = [
            [t.point["wrap.ridge.lam"] for t in planned(s, workspace).trials if t.arm == "ridge"] for s in (few, more)
        ]
        assert lams[0] == lams[1]

    def test_another_search_seed_draws_others(self, workspace):
        found = [
            planned(with_space("{wrap.ridge.lam: {uniform: [1, 2]}}", f"{{sampler: random, seed: {s}}}"), workspace)
            for s in (0, 1)
        ]
        assert found[0].trials[-1].key != found[1].trials[-1].key

    def test_point_reaches_every_section(self, workspace):
        space = (
            "{threads: {grid: [2]}, model.dtype: {grid: [float16]}, data.skip: {grid: [10]}, "
            "protocol.batch_size: {grid: [5]}, editor.moments.text.tokens: {grid: [7]}, "
            "wrap.ridge.mode: {grid: [init]}}"
        )
        trial = planned(with_space(space), workspace).trials[-1].trial
        assert (trial.threads, trial.model.dtype, trial.data.skip, trial.protocol.batch_size) == (2, "float16", 10, 5)
        assert trial.editor.config.moments.text.tokens == 7
        assert trial.editor.wrap[0].config.mode == "init"

    def test_swept_dataset_does_not_inherit_the_path(self, workspace):
        spec = with_space("{data.name: {grid: [hundred, other]}}")
        spec = parse_search_space(spec.source, ["data.path=a.json"])
        found = planned(spec, workspace).trials
        assert [bool(t.trial.data.path) for t in found[:2]] == [True, False]

    def test_an_arms_own_domain_hides_the_sweeps(self, workspace):
        text = SWEEP + "  two: {editor: plain, space: {seed: {grid: [7]}}}\nspace: {seed: {grid: [0, 1]}}\n"
        spec = sweep(text)
        assert domains(spec, spec.arm("two"), components()) == {"seed": Grid((7,))}
        assert [t.trial.seed for t in planned(spec, workspace).trials if t.arm == "two"] == [7]

    def test_equal_trials_run_once_and_are_noted(self, workspace):
        found = planned(sweep(SWEEP + "  again: {editor: plain}\n"), workspace)
        assert len(found.trials) == 3
        assert found.notes == ("arm 'again': 1 of its points are trials already in the plan; they run once",)

    def test_a_seed_written_in_another_way_is_none(self, workspace):
        """Else one trial is pooled with itself: two seeds, and half the variance."""
        with pytest.raises(ProblemsError) as caught:
            planned(sweep(f"{SWEEP}space: {{seed: {{grid: [0, 1, '1', 1.0, true]}}}}\n"), workspace)
        shown = str(caught.value)
        for value in ("'1'", "1.0", "True"):
            assert f"seed: should be a valid integer, got {value}" in shown

    def test_bind_gives_the_planned_key(self, workspace):
        spec = with_space("{seed: {grid: [0, 1]}, wrap.ridge.lam: {loguniform: [0.1, 10]}}")
        for trial in planned(spec, workspace).trials:
            assert bind(spec, trial.arm, trial.point, workspace, components()).key == trial.key

    def test_bind_complains(self, workspace):
        with pytest.raises(NameUnknownError, match="unknown arm 'x'"):
            bind(sweep(), "x", {}, workspace, components())
        with pytest.raises(ProblemsError, match="lam: should be greater than 0, got -1"):
            bind(sweep(), "ridge", {"wrap.ridge.lam": -1}, workspace, components())


class TestPasses:
    """Trials that can take their edits from one pass, and the path that asks for it."""

    ARM = SWEEP.replace("wrap: ridge", "wrap: {name: ridge, lam: {path: [0.1, 1, 10]}}")

    def test_a_path_is_one_pass_over_the_trials_a_grid_would_give(self, workspace):
        found = planned(sweep(self.ARM), workspace)
        assert [(t.arm, dict(t.point)) for t in found.trials[2:]] == [
            ("ridge", {"wrap.ridge.lam": lam}) for lam in (0.1, 1, 10)
        ]
        assert [len(group) for group in found.edit_groups] == [1, 1, 3]
        text = SWEEP.replace("wrap: ridge", "wrap: {name: ridge, mode: init}")
        for override in ("space.wrap.ridge.lam={grid: [0.1, 1, 10]}", "wrap.ridge.lam={grid: [0.1, 1, 10]}"):
            grid = planned(sweep(text, override), workspace)
            assert [t.key for t in grid.trials] == [t.key for t in found.trials]
            assert [len(group) for group in grid.edit_groups] == [1, 1, 3]
        alone = [planned(sweep(text, f"arms.ridge.wrap.ridge.lam={x}"), workspace).trials[2].key for x in (0.1, 1, 10)]
        assert alone == [t.key for t in found.trials[2:]]

    def test_a_path_may_come_from_the_command_line(self, workspace):
        found = planned(sweep(SWEEP, "wrap.ridge.lam={path: [2, 4]}"), workspace)
        assert [t.trial.editor.wrap[0].config.mode for t in found.trials[2:]] == ["init", "init"]

    def test_a_path_may_lie_deeper(self, workspace):
        text = SWEEP.replace("wrap: ridge", "wrap: {name: ridge, blur: {width: {path: [2, -3]}}}")
        assert f"x.yaml:9:{column(text, '-3')}  'ridge': blur.width" in complaints(sweep(text), workspace)[0]
        found = planned(sweep(text.replace("-3", "3")), workspace)
        assert [t.trial.editor.wrap[0].config.blur.width for t in found.edit_groups[-1]] == [2, 3]
        assert found.trials[-1].trial.editor.wrap[0].config.mode == "init"

    def test_seeds_and_whatever_else_is_measured_make_passes_of_their_own(self, workspace):
        found = planned(sweep(self.ARM, "space.seed={grid: [0, 1]}"), workspace)
        assert [sorted({t.trial.seed for t in group}) for group in found.edit_groups[-2:]] == [[0], [1]]
        assert len(planned(sweep(self.ARM, "space.protocol.scope={grid: [seen, all]}"), workspace).edit_groups[-1]) == 3

    def test_where_edits_are_apart_seeds_are_kin(self, workspace):
        found = planned(sweep(self.ARM, "space.seed={grid: [0, 1]}"), workspace)
        ridge = [t for t in found.trials if t.arm == "ridge"]
        assert len({t.proposal_cache_key for t in ridge}) == 1
        assert all(t.can_propose and t.proposal_cache_key and t.proposal_cache_key != t.edit_key for t in ridge)
        assert not any(t.can_propose or t.proposal_cache_key for t in found.trials if t.arm != "ridge")
        pairs = planned(sweep(self.ARM, "protocol={batch_size: 5, rounds: [0, 5]}"), workspace).trials[-1]
        assert pairs.can_propose
        assert pairs.proposal_cache_key == "", "a batch depends on the order"
        alone = planned(sweep(self.ARM, "resources.share=false"), workspace).trials[-1]
        assert (alone.can_propose, alone.edit_key, alone.proposal_cache_key) == (True, "", "")

    def test_shards_help_only_where_edits_are_apart(self, workspace):
        assert planned(sweep(self.ARM, "resources.shards=2"), workspace).notes == (
            "resources.shards has no effect on plain, surgeon: their edits depend on each other",
        )

    def test_nothing_is_shared_where_edits_depend_on_it_or_nobody_wants_it(self, workspace):
        sequential = planned(sweep(SWEEP, "wrap.ridge.lam={grid: [1, 2]}"), workspace)
        assert [len(group) for group in sequential.edit_groups] == [1] * 4
        unwanted = planned(sweep(self.ARM, "resources.share=false"), workspace)
        assert [len(group) for group in unwanted.edit_groups] == [1] * 5

    def test_what_contradicts_a_path_is_said_where_it_stands(self, workspace):
        text = SWEEP.replace("wrap: ridge", "wrap: {name: ridge, lam: {path: [1, 2]}, mode: sequential}")
        found = complaints(sweep(text), workspace)
        assert len(found) == 1
        assert found[0].startswith(
            f"error[E-SPEC] x.yaml:9:{column(text, 'sequential')}  a path of 'lam' implies mode: init, "
            "but here mode is sequential\n"
            "    remove 'mode', or write lam: {grid: […]} for one run per value"
        )
        swept = complaints(sweep(self.ARM + "space:\n  wrap.ridge.mode: {grid: [init, sequential]}\n"), workspace)
        assert "x.yaml:11:34  a path of 'lam' implies mode: init, but here mode is sequential" in swept[0]

    def test_a_value_of_a_path_is_located(self, workspace):
        text = SWEEP.replace("wrap: ridge", "wrap: {name: ridge, lam: {path: [1, -2]}}")
        assert (
            f"x.yaml:9:{column(text, '-2')}  'ridge': lam: should be greater than 0, got -2"
            in complaints(sweep(text), workspace)[0]
        )

    def test_only_what_edits_do_not_depend_on_has_a_path(self, workspace):
        text = SWEEP.replace("layers: [2]}}\n  ridge", "layers: [2], rate: {path: [1, 2]}}}\n  ridge")
        found = complaints(sweep(text), workspace)
        assert f"x.yaml:8:{column(text, 'rate')}  'editor.rate' has no path: edits depend on it" in found[0]
        assert "keys with a path: wrap.ridge.lam, wrap.ridge.blur" in found[0]
        both = self.ARM.replace("10]}}", "10]}}, space: {wrap.ridge.lam: {grid: [1]}}")
        with pytest.raises(ProblemsError, match=r"wrap\.ridge\.lam is written twice"):
            sweep(both)


class TestHparams:
    LAYERLESS = SWEEP.replace("{name: surgeon, layers: [2]}", "surgeon")

    def test_file_then_arm_then_point(self, workspace):
        write(
            workspace,
            "hparams/surgeon/tiny.yaml",
            "source: paper\nnotes: n\nlayers: [3]\nrate: 2\nmoments: {samples: 4}",
        )
        text = self.LAYERLESS + "  own: {editor: {name: surgeon, rate: 5}, space: {editor.rate: {grid: [7]}}}\n"
        found = {t.arm: t.trial.editor.config for t in planned(sweep(text), workspace).trials}
        assert (found["surgeon"].layers, found["surgeon"].rate) == ((3,), 2.0)
        assert found["surgeon"].moments.samples == 4
        assert (found["own"].layers, found["own"].rate) == ((3,), 7.0)

    def test_wrapper_may_have_a_file(self, workspace):
        write(workspace, "hparams/ridge/tiny.yaml", "lam: 9")
        assert planned(sweep(), workspace).trials[2].trial.editor.wrap[0].config.lam == 9.0

    def test_values_for_one_editor_or_dataset(self, workspace):
        entries = (
            "[{editor: surgeon, lam: 2}, {editor: surgeon, data: other, lam: 3, mode: init}, {data: other, lam: 4}]"
        )
        write(workspace, "hparams/ridge/tiny.yaml", f"lam: 9\nfor: {entries}")
        text = SWEEP + "  plain ridge: {editor: plain, wrap: ridge}\n"

        def ridges(*overrides):
            found = {t.arm: t.trial.editor.wrap for t in planned(sweep(text, *overrides), workspace).trials}
            return {arm: (w[0].config.lam, w[0].config.mode) for arm, w in found.items() if w}

        assert ridges() == {"ridge": (2.0, "sequential"), "plain ridge": (9.0, "sequential")}
        assert ridges("data=other") == {"ridge": (4.0, "init"), "plain ridge": (4.0, "sequential")}
        assert ridges("data=other", "arms.ridge.wrap.ridge.lam=5")["ridge"] == (5.0, "init")

    @pytest.mark.parametrize(
        ("entries", "said"),
        [
            ("{editor: surgeon, lam: 2}", "'for' is a list of mappings"),
            ("[{lam: 2}]", "'for' is a list of mappings"),
            ("[{editor: surgoen, lam: 2}]", "for: unknown editor 'surgoen'"),
            ("[{data: 7, lam: 2}]", "for: unknown data 7"),
        ],
    )
    def test_a_wrong_entry_of_for(self, workspace, entries, said):
        write(workspace, "hparams/ridge/tiny.yaml", f"lam: 9\nfor: {entries}")
        (found,) = complaints(sweep(), workspace)
        assert found.startswith("error[E-YAML] x.yaml:9:")
        assert f"tiny.yaml:2:{6 if entries[0] == '{' else 7}  {said}" in found

    def test_a_mistake_in_an_entry_of_for_has_its_place(self, workspace):
        write(workspace, "hparams/ridge/tiny.yaml", "for:\n  - {editor: surgeon, lam: 0}")
        (found,) = complaints(sweep(), workspace)
        assert "tiny.yaml:2:28  'ridge': lam: should be greater than 0, got 0" in found

    def test_another_models_file_by_name(self, workspace):
        write(workspace, "hparams/surgeon/gpt-j-6b.yaml", "layers: [5]")
        for override in ("model.hparams=gpt-j-6b", "model=EleutherAI/GPT-J-6b"):
            found = planned(sweep(self.LAYERLESS, override), workspace)
            assert found.trials[1].trial.editor.config.layers == (5,)

    def test_missing_file_lists_those_there_are(self, workspace):
        write(workspace, "hparams/surgeon/other.yaml", "layers: [5]")
        found = complaints(sweep(self.LAYERLESS), workspace)
        assert found[0].startswith(
            "error[E-SPEC] x.yaml:8:21  'surgeon' has no hyper-parameters for model 'tiny': "
            "hparams/surgeon/tiny.yaml is missing\n"
        )
        assert "give layers in the arm, or model.hparams; files of 'surgeon': other" in found[0]

    def test_mistakes_are_located_in_the_file(self, workspace):
        write(workspace, "hparams/surgeon/tiny.yaml", "source: x\nlayers: [3]\nrat: 2\nrate: 0")
        found = complaints(sweep(self.LAYERLESS), workspace)
        file = workspace.root / "hparams/surgeon/tiny.yaml"
        assert f"error[E-SPEC] {file}:3:1  unknown key 'rat' in 'surgeon'\n    did you mean: rate" in found[0]
        assert f"error[E-SPEC] {file}:4:7  'surgeon': rate: should be greater than 0, got 0" in found[1]

    def test_a_key_that_the_file_leaves_out(self, workspace):
        write(workspace, "hparams/surgeon/tiny.yaml", "rate: 2")
        assert "x.yaml:8:21  'surgeon' needs the key 'layers'" in complaints(sweep(self.LAYERLESS), workspace)[0]

    @pytest.mark.parametrize("text", ["- 1", "", "a: [1"])
    def test_malformed_file(self, workspace, text):
        write(workspace, "hparams/surgeon/tiny.yaml", text)
        found = complaints(sweep(self.LAYERLESS), workspace)
        assert found[0].startswith("error[E-YAML] x.yaml:8:21")
        assert "tiny.yaml:1:" in found[0]


class TestComplaints:
    def test_nonpositive_lambda_has_place_and_value(self, workspace):
        text = SWEEP.replace("wrap: ridge", "wrap: {name: ridge, lam: 0}")
        assert complaints(sweep(text), workspace) == [
            "error[E-SPEC] x.yaml:9:74  'ridge': lam: should be greater than 0, got 0"
        ]

    @pytest.mark.parametrize("wrap", ["[ridge, report]", "[{name: report, keep: true}]"])
    def test_wrappers_that_fit(self, workspace, wrap):
        assert planned(sweep(SWEEP + f"  two: {{editor: plain, wrap: {wrap}}}\n"), workspace).trials

    @pytest.mark.parametrize(
        ("wrap", "said"),
        [
            ("[report, ridge]", "ridge cannot wrap 'report': it changes views, not weights"),
            ("[ridge, {name: report, keep: true}]", "report around 'ridge': keep: true needs a bare editor"),
        ],
    )
    def test_wrappers_around_wrappers(self, workspace, wrap, said):
        """A wrapper meets what is right inside it, and may refuse it by its own configuration."""
        (found,) = complaints(sweep(SWEEP + f"  two: {{editor: plain, wrap: {wrap}}}\n"), workspace)
        assert found.startswith("error[E-WRAP] x.yaml:10:")
        assert said in found

    def test_swept_lambda_points_at_the_grid_value(self, workspace):
        found = complaints(with_space("{wrap.ridge.lam: {grid: [1, 2.5, -1]}}"), workspace)
        assert found == ["error[E-SPEC] x.yaml:10:41  'ridge': lam: should be greater than 0, got -1"]

    def test_everything_at_once_in_reading_order(self, workspace):
        text = """\
sweep: x
study: lifelog
base:
  model: {name: nowhere, dtyp: float32}
  data: {name: hundrd}
  protocol: {rounds: [0, 3], batch_size: 2}
  threads: 0
arms:
  a: {editor: surgon}
  b: {editor: {name: plain, rate: 1}, wrap: rigde}
  c: {editor: memory, wrap: [{name: ridge, lamb: 1}]}
search: {metric: retained/rle}
"""
        found = complaints(parse_search_space(parse(text, "x.yaml")), workspace)
        expected = [
            ("x.yaml:2:8  unknown study 'lifelog'", "did you mean: lifelong"),
            ("x.yaml:4:26  unknown key 'dtyp' in model", "did you mean: dtype"),
            ("x.yaml:5:16  unknown dataset 'hundrd'", "did you mean: hundred"),
            ("x.yaml:6:22  protocol: rounds must be multiples of batch_size = 2; offending rounds = [3]", ""),
            ("x.yaml:7:12  base: threads: should be greater than or equal to 1, got 0", ""),
            ("x.yaml:9:15  unknown editor 'surgon'", "did you mean: surgeon"),
            ("x.yaml:10:29  unknown key 'rate' in 'plain'", "known: (none)"),
            ("x.yaml:10:45  unknown wrapper 'rigde'", "did you mean: ridge"),
            (
                "x.yaml:11:30  ridge cannot wrap 'memory': it changes modules, not weights",
                "wrap an editor whose patch is",
            ),
            ("x.yaml:11:44  unknown key 'lamb' in 'ridge'", "did you mean: lam"),
            ("x.yaml:12:18  search.metric: no round has a value 'retained/rle'", "did you mean: retained/rel"),
        ]
        assert len(found) == len(expected)
        for said, (message, hint) in zip(found, expected, strict=True):
            assert message in said
            assert hint in said

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["model=nowhere"], "error[E-MODEL] --set model=nowhere  unknown model 'nowhere'\n    known: embedded"),
            (["data.path=missing"], "error[E-DATA] --set data.path=missing  data.path '/"),
            (["data.pth=x"], "error[E-SPEC] --set data.pth=x  unknown key 'pth' in data\n    did you mean: path"),
            (["data.skip=100"], "--set data.skip=100  data.skip = 100 leaves 0 of the 100 records of 'hundred'"),
            (["data.size=200"], "leaves 100 of the 100 records of 'hundred', but data.size = 200"),
            (["data.size=ten"], "--set data.size=ten  data: size: should be a valid integer"),
            (
                ["protocol.rounds=[0, 25]"],
                "error[E-PROTOCOL] --set protocol.rounds=[0, 25]  rounds beyond the data: [25]",
            ),
            (["protocol.rounds=[5, 5]"], "rounds must rise without repeats, got [5, 5]"),
            (["protocol.rounds=[]"], "rounds must name at least one step"),
            (["protocol.rounds=[0, -1]"], "protocol: rounds.1: should be greater than or equal to 0, got -1"),
            (["protocol.probes=[efficcy]"], "protocol: probes.0: should be 'efficacy', 'paraphrase'"),
            (["arms.surgeon.editor.moments.txt=1"], "unknown key 'txt' in 'surgeon', moments\n    did you mean: text"),
            (
                ["arms.surgeon.editor.moments.text.name=lost"],
                "error[E-DATA] --set arms.surgeon.editor.moments.text.name",
            ),
            (["arms.surgeon.editor.layers=[]"], "'surgeon': layers: tuple should have at least 1 item"),
            (["arms.ridge.wrap.ridge.mode=x"], "'ridge': mode: should be 'sequential' or 'init', got 'x'"),
            (["model=nowhere", "protocol.rounds=[0, 25]"], "rounds beyond the data: [25]"),
            (["seed=a"], "--set seed=a  base: seed: should be a valid integer"),
        ],
    )
    def test_from_the_command_line(self, workspace, overrides, message):
        assert any(message in p for p in complaints(sweep(SWEEP, *overrides), workspace))

    @pytest.mark.parametrize(
        ("space", "message"),
        [
            ("{sed: {grid: [0]}}", "x.yaml:10:9  'sed' applies to no arm\n    did you mean: seed"),
            ("{wrap.ridge.lamb: {grid: [1]}}", "'wrap.ridge.lamb' applies to no arm\n    did you mean: wrap.ridge.lam"),
            ("{wrap.other.lam: {grid: [1]}}", "'wrap.other.lam' applies to no arm"),
            ("{zzz: {grid: [1]}}", "'zzz' applies to no arm\n    swept keys: seed, threads, model.…"),
            ("{editor: {grid: [1]}}", "'editor' applies to no arm"),
            ("{model.digest: {grid: [a]}}", "'model.digest' applies to no arm"),
            ("{seed: {grid: [a]}}", "x.yaml:10:23  base: seed: should be a valid integer"),
        ],
    )
    def test_swept_keys(self, workspace, space, message):
        assert any(message in p for p in complaints(with_space(space), workspace))

    def test_an_arms_own_key_must_apply_to_it(self, workspace):
        text = SWEEP + "  own: {editor: plain, space: {wrap.ridge.lam: {grid: [1]}}}\n"
        assert "x.yaml:10:32  'wrap.ridge.lam' does not apply to arm 'own'" in complaints(sweep(text), workspace)[0]

    def test_drawn_domain_needs_the_random_sampler(self, workspace):
        found = complaints(with_space("{wrap.ridge.lam: {uniform: [1, 2]}}", "{sampler: grid}"), workspace)
        assert found == [
            "error[E-SPEC] x.yaml:10:9  'wrap.ridge.lam' is drawn (uniform), but search.sampler is grid\n"
            "    search: {sampler: random, samples: 8, seed: 0}"
        ]

    def test_swept_editor_key_with_an_unknown_editor_is_one_problem(self, workspace):
        text = "sweep: x\nbase: {data: hundred}\narms: {a: {editor: surgon}}\nspace: {editor.rate: {grid: [1]}}"
        found = complaints(parse_search_space(parse(text, "x.yaml")), workspace)
        assert len(found) == 1
        assert "unknown editor 'surgon'" in found[0]
