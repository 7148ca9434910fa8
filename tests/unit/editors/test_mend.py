"""MEND's network, its training, its archives and its place in the engine, against hand-computed values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raysweep.artifacts import Artifact, ArtifactStore
from raysweep.cli import train_mend
from raysweep.config.plan import plan
from raysweep.config.schema import EditorSpec, ModelSpec
from raysweep.config.sweep import parse_search_space
from raysweep.editors import build
from raysweep.editors.mend import archive, factors, network
from raysweep.editors.mend import editor as mend_editor
from raysweep.editors.mend.editor import Mend, MendConfig
from raysweep.editors.mend.training import Trainer
from raysweep.errors import ArtifactError, DataError, ProblemsError, SpecError
from raysweep.models import ledger, tokens
from raysweep.models.forward import blocks
from raysweep.testing.fixtures import fingerprint, same, tiny_lm, toy_records
from raysweep.workspace import Workspace

TINY = {"layers": [1, 2], "rank": 4, "edit_lr": -1e-4}
TRAIN = {"steps": 12, "batch": 4, "validation": 3, "lr": 1e-3, "cedit": 1.0, "every": 4}


def config(**train: Any) -> MendConfig:
    return MendConfig.model_validate({**TINY, "train": {**TRAIN, **train}})


def test_one_layer_by_hand() -> None:
    layer = network.Residual(2, 1, 1, torch.Generator())
    with torch.no_grad():
        layer.u.copy_(torch.tensor([[0.5], [-0.2]]))
        layer.v.copy_(torch.tensor([[1.0, -1.0]]))
        layer.bias.copy_(torch.tensor([0.1, 0.0]))
        layer.mode_scale.weight.copy_(torch.tensor([[2.0, 1.0]]))
        layer.mode_shift.weight.copy_(torch.tensor([[0.0, 0.05]]))
    out = layer(torch.tensor([[0.3, -0.4]]), 0)
    torch.testing.assert_close(out, torch.tensor([[1.2, -0.4]]))


def test_the_clamp_lets_gradients_through_at_zero() -> None:
    layer = network.Residual(3, 2, 1, torch.Generator().manual_seed(0))
    layer(torch.ones(1, 3), 0).sum().backward()
    assert layer.u.grad is not None
    assert float(layer.u.grad.abs().sum()) > 0


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_running_statistics_by_hand(cut: int) -> None:
    net = network.FactorNet(2, 2, rank=1, matrices=1, depth=2, rng=torch.Generator())
    rows = torch.tensor([[1.0, 2.0], [3.0, 1.0], [2.0, 6.0]])
    for part in (rows[:cut], rows[cut:]):
        net.update_statistics(part, 10 * part)
    torch.testing.assert_close(net.u_mean, torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(net.u_std, torch.tensor([1.0, 2.64575131]))
    torch.testing.assert_close(net.v_std, torch.tensor([10.0, 26.4575131]))
    assert float(net.k) == 3


def test_an_untrained_network_multiplies_normalised_factors() -> None:
    """the identity at initialisation, zero tokens dropped, and the sign of η."""
    matrices = [network.Matrix("a.weight", 3, 2), network.Matrix("b.weight", 3, 2)]
    net = network.Hypernetwork(matrices, rank=2, edit_lr=0.5).train()
    rng = torch.Generator().manual_seed(1)
    x, delta = torch.randn(6, 3, generator=rng), torch.randn(6, 2, generator=rng)
    x[2] = 0
    with torch.no_grad():
        left, right = net("b.weight", x, delta)
    kept = [0, 1, 3, 4, 5]
    assert not left[2].any()
    assert not right[2].any()
    for ours, raw, factor in ((left, x, 1.0), (right, delta, 0.5)):
        wanted = (raw[kept] - raw[kept].mean(0)) / (raw[kept].std(0) + 1e-7) * factor
        torch.testing.assert_close(ours[kept], wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        net.edit_lrs.mul_(-1)
        torch.testing.assert_close(net.eval()("b.weight", x, delta)[1], -right)


def test_networks_are_shared_by_shape_or_not_at_all() -> None:
    matrices = [network.Matrix("a.weight", 3, 2), network.Matrix("b.weight", 2, 3), network.Matrix("c.weight", 3, 2)]
    shared = network.Hypernetwork(matrices, rank=2, edit_lr=1.0)
    assert list(shared.mend) == ["(3, 2)", "(2, 3)"]
    assert [shared.net(m.name)[1] for m in matrices] == [0, 0, 1]
    alone = network.Hypernetwork(matrices, rank=2, edit_lr=1.0, shared=False)
    assert list(alone.mend) == ["a#weight", "b#weight", "c#weight"]
    for net in (shared, alone):
        again = network.Hypernetwork.load(matrices, net.state_dict())
        assert same(dict(again.state_dict()), dict(net.state_dict()))
    with pytest.raises(ArtifactError, match="does not fit"):
        network.Hypernetwork.load(matrices[:1], shared.state_dict())


def test_factors_give_the_weights_gradient_and_leave_the_model_alone() -> None:
    for family in ("gpt2", "llama", "qwen2"):
        lm, records = tiny_lm(family), toy_records(3)
        before = fingerprint(lm)
        names = mend_editor.edited_parameters(lm, MendConfig.model_validate({**TINY, "train": {}}))
        asks = [factors.label_text(lm, r.prompt, r.target) for r in records]
        found = factors.gradient_factors(
            lm, factors.batch_texts(lm, asks, 1), [n.removesuffix(".weight") for n in names]
        )
        assert same(before, fingerprint(lm))
        stand_ins = {n: lm.weight(n).detach().clone() for n in names}
        with ledger.substituted(lm, stand_ins) as live:
            for parameter in live.values():
                parameter.requires_grad_(True)
            ids, mask = tokens.pad([asks[1].ids], lm.device)
            logp = blocks.logits(lm, blocks.run(lm, ids=ids, mask=mask))[0].log_softmax(-1)
            loss = -sum(logp[t, y] for t, y in zip(asks[1].predicting, asks[1].labels, strict=True)) / len(
                asks[1].labels
            )
            gradients = torch.autograd.grad(loss, list(live.values()))
        torch.testing.assert_close(found.loss[1], loss.detach(), rtol=1e-5, atol=1e-6)
        for name, gradient in zip(names, gradients, strict=True):
            x, delta = found.pairs[name.removesuffix(".weight")]
            wanted = ledger.to_stored_layout(lm, name, gradient)
            torch.testing.assert_close(delta[1].T @ x[1], wanted, rtol=1e-3, atol=1e-6)


def test_a_row_computed_with_its_update_is_the_edited_model() -> None:
    """What training measures in one batch is what editing one record at a time gives."""
    lm, records = tiny_lm("gpt2"), toy_records(2)
    trainer = Trainer(lm, config(), toy_records(10))
    trainer._warm_up()
    trainer.net.eval()
    asks = [factors.label_text(lm, r.prompt, r.target) for r in records]
    rows = factors.batch_texts(lm, asks, 1)
    with torch.no_grad(), factors.row_updates_applied(lm, trainer._updates(asks)):
        together = rows.nll(blocks.logits(lm, rows.hidden(lm)))
    tensors, meta = trainer.result()
    editor = Mend(config())
    for i, record in enumerate(records):
        step = editor.edit(
            lm, [record], None, artifacts={"hypernetwork": Artifact("x", tensors, meta)}, rng=torch.Generator()
        )
        with torch.no_grad(), ledger.applied(lm, step.patch.deltas):  # type: ignore[union-attr]
            one = factors.batch_texts(lm, asks[i : i + 1], 1)
            alone = one.nll(blocks.logits(lm, one.hidden(lm)))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def test_a_batch_of_records_is_the_sum_of_its_records() -> None:
    lm, records = tiny_lm("llama"), toy_records(3)
    trainer = Trainer(lm, config(), toy_records(10))
    tensors, meta = trainer.result()
    artifacts, editor = {"hypernetwork": Artifact("x", tensors, meta)}, Mend(config())

    def change(batch: Any) -> dict[str, torch.Tensor]:
        step = editor.edit(lm, batch, None, artifacts=artifacts, rng=torch.Generator())
        return {n: d.dense() for n, d in step.patch.deltas.items()}  # type: ignore[union-attr]

    whole, parts = change(records), [change([r]) for r in records]
    for name, total in whole.items():
        torch.testing.assert_close(total, sum(p[name] for p in parts), rtol=1e-4, atol=1e-6)


def test_training_lowers_the_loss_and_keeps_the_best() -> None:
    lm = tiny_lm("llama")
    before = fingerprint(lm)
    trainer = Trainer(lm, config(steps=40, every=5, batch=6), toy_records(20))
    rows: list[dict[str, float]] = []
    trainer.run(progress=lambda row: rows.append(dict(row)))
    assert same({**before, "rng": 0}, {**fingerprint(lm), "rng": 0})
    assert sum(r["loss"] for r in rows[-5:]) < sum(r["loss"] for r in rows[:5])
    ranks = [trainer._rank(row) for row in trainer.history]
    assert trainer._rank(trainer.scores) == max(ranks)
    tensors, meta = trainer.result()
    assert meta["scores"]["step"] == trainer.history[ranks.index(max(ranks))]["step"]
    again = network.Hypernetwork.load(trainer.matrices, tensors)
    trainer.net.load_state_dict(again.state_dict())
    assert trainer.validate()["val_loss"] == pytest.approx(trainer.scores["val_loss"])


def test_the_newest_network_may_be_kept_as_published() -> None:
    """Quirk Q36: every validation overwrites, however bad the network has become."""
    trainer = Trainer(tiny_lm("llama"), config(steps=8, every=2, select="last", lr=0.5), toy_records(12))
    trainer.run()
    assert trainer.scores["step"] == 8
    assert min(row["val_loss"] for row in trainer.history) < trainer.scores["val_loss"]
    assert same(dict(trainer.best), dict(trainer.net.state_dict()))


def test_resumed_training_is_straight_training_bit_for_bit(tmp_path: Path) -> None:
    records = toy_records(16)
    straight = Trainer(tiny_lm("gpt2"), config(), records)
    straight.run()
    first = Trainer(tiny_lm("gpt2"), config(), records)
    first.run(until=7)
    archive.pack(tmp_path / "state", *first.state())
    second = Trainer(tiny_lm("gpt2"), config(), records)
    second.load(*archive.unpack(tmp_path / "state"))
    second.run()
    assert same(straight.state()[0], second.state()[0])
    assert straight.state()[1] == second.state()[1]
    with pytest.raises(DataError, match="another model, recipe or fold"):
        Trainer(tiny_lm("gpt2"), config(lr=1e-2), records).load(*archive.unpack(tmp_path / "state"))


def test_reference_flags_change_what_they_say() -> None:
    lm, records = tiny_lm("llama", bos=True), toy_records(16)
    plain = Trainer(lm, config(), records)
    assert Trainer(lm, config(ref_lr=True), records).adam.param_groups[1]["lr"] == TRAIN["lr"]
    assert plain.adam.param_groups[1]["lr"] == 1e-4
    lessons = plain._examples(0)
    assert [x.edit for x in lessons] == [x.edit for x in Trainer(lm, config(), records)._examples(0)]
    aligned, later = (t._losses(lessons) for t in (plain, Trainer(lm, config(ref_kl=True), records)))
    torch.testing.assert_close(aligned.edit, later.edit)
    assert not torch.allclose(aligned.locality, later.locality)


def test_training_needs_enough_records() -> None:
    with pytest.raises(DataError, match="too few to train on"):
        Trainer(tiny_lm("gpt2"), config(), toy_records(1))


class Config:
    """Stands for the configuration object published archives hold."""

    def __init__(self) -> None:
        self.n_layer = 2


def test_published_archives_are_read_without_running_them(tmp_path: Path) -> None:
    tensors = {**network.Hypernetwork([network.Matrix("a.weight", 3, 2)], rank=2, edit_lr=1e-4).state_dict()}
    torch.save({"model": {**tensors, "model_config": Config()}, "step": 3}, tmp_path / "MEND")
    found, meta = archive.read(tmp_path / "MEND")
    assert same(found, tensors)
    assert meta == {"source": "MEND"}
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="cannot be read safely"):
        archive.read(tmp_path / "broken")
    with pytest.raises(ArtifactError, match="no such archive"):
        archive.read(tmp_path / "gone")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ArtifactError, match="holds no 'edit_lrs'"):
        archive.read(tmp_path / "other")


def test_an_archive_is_an_artifact_whose_path_does_not_matter(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    tensors, meta = Trainer(lm, config(), toy_records(8)).result()
    for folder in ("a", "b"):
        archive.write(tmp_path / folder / "net.safetensors", tensors, meta)
    assert json.loads((tmp_path / "a" / "net.json").read_text())["model"] == lm.digest
    store, digests = ArtifactStore(tmp_path / "store"), []
    for folder in ("a", "b"):
        weights = {"path": str(tmp_path / folder / "net.safetensors"), "digest": "0" * 16}
        editor = Mend(MendConfig.model_validate({**TINY, "weights": weights}))
        digests.append(store.folder(editor.artifact_requests(lm)["hypernetwork"]).name)
    assert digests[0] == digests[1]
    with pytest.raises(ArtifactError, match="digest is not 0000"):
        build.provide(lm, editor.artifact_requests(lm), store, lambda _: iter(()), threads=1)


def test_the_network_is_trained_where_it_is_missing(tmp_path: Path) -> None:
    lm, store, asked = tiny_lm("llama"), ArtifactStore(tmp_path), []
    editor = Mend(config())

    def records(spec: Any) -> Any:
        asked.append(spec)
        return toy_records(8)

    first = build.provide(lm, editor.artifact_requests(lm), store, lambda _: iter(()), records=records, threads=1)
    again = build.provide(lm, editor.artifact_requests(lm), store, lambda _: iter(()), records=records, threads=1)
    assert asked == [config().train.data]  # type: ignore[union-attr]
    assert same(dict(first["hypernetwork"].tensors), dict(again["hypernetwork"].tensors))
    other = Mend(config(seed=1)).artifact_requests(lm)["hypernetwork"]
    assert store.folder(other) != store.folder(editor.artifact_requests(lm)["hypernetwork"])


def test_neither_recipe_nor_archive() -> None:
    with pytest.raises(SpecError, match="no hypernetwork"):
        Mend(MendConfig.model_validate(TINY)).artifact_requests(tiny_lm("llama"))


def test_an_archive_makes_the_recipe_moot() -> None:
    given = {**TINY, "weights": {"path": "x"}, "train": TRAIN}
    assert MendConfig.model_validate(given).train is None
    with pytest.raises(ValidationError, match="stepps"):
        MendConfig.model_validate({**given, "train": {"stepps": 1}})


def test_simie_keeps_one_inverse_per_input() -> None:
    lm = tiny_lm("llama")
    wrapped = build.build_editor(
        EditorSpec.model_validate(
            {
                "name": "mend",
                "config": {**TINY, "train": TRAIN},
                "wrap": [{"name": "simie", "config": {"lam": 1.0, "mode": "init"}}],
            }
        )
    )
    tensors, meta = Trainer(lm, config(), toy_records(8)).result()
    artifacts = {"hypernetwork": Artifact("x", tensors, meta)}
    state = wrapped.begin(lm, artifacts)
    step = wrapped.edit(lm, toy_records(1), state, artifacts=artifacts, rng=torch.Generator())
    assert sorted(step.state["inputs"]) == sorted(
        f"model.layers.{i}.mlp{part}" for i in (1, 2) for part in ("", ".down_proj")
    )
    assert set(step.state["matrices"]) == set(wrapped.edited_parameters(lm))
    assert len(wrapped.edited_parameters(lm)) == 6


def test_the_plan_covers_the_archive_and_the_fold(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"first")
    workspace = Workspace(tmp_path)

    def trial(**editor: Any) -> Any:
        tree = {
            "sweep": "t",
            "base": {"data": {"name": "world", "size": 2}},
            "arms": {"a": {"editor": {"name": "mend", **editor}}},
        }
        return plan(parse_search_space(tree, file="t.yaml"), workspace).trials[0].trial

    trained = trial()
    assert trained.editor.config.train.data.digest == trained.data.digest
    given = trial(weights={"path": "net.safetensors"})
    assert given.editor.config.train is None
    assert given.editor.config.weights.path == str(tmp_path / "net.safetensors")
    (tmp_path / "net.safetensors").write_bytes(b"second")
    assert trial(weights={"path": "net.safetensors"}).key != given.key
    with pytest.raises(ProblemsError, match="does not exist"):
        trial(weights={"path": "gone.safetensors"})
    with pytest.raises(ProblemsError, match="too few"):
        trial(train={"data": {"name": "world", "skip": 10_000}})


def test_train_mend_resumes_and_writes_an_archive(tmp_path: Path) -> None:
    workspace, model = Workspace(tmp_path), ModelSpec()
    said = ["train.steps=3", "train.batch=4", "train.every=1", "rank=4", "layers=[3]"]
    made = train_mend.recipe(model, workspace, {"skip": 300, "size": 40}, said)
    assert made.train is not None
    assert (made.train.data.skip, made.train.data.size, made.layers) == (300, 40, (3,))

    def stop(row: Any) -> None:
        if row["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_mend.train(made, model, workspace, tmp_path / "a.safetensors", threads=1, report=stop)
    assert (tmp_path / "a.safetensors.resume").is_file()
    steps: list[float] = []
    train_mend.train(
        made, model, workspace, tmp_path / "a.safetensors", threads=1, report=lambda r: steps.append(r["step"])
    )
    train_mend.train(made, model, workspace, tmp_path / "b.safetensors", threads=1, report=lambda r: None)
    assert steps == [3]
    assert not (tmp_path / "a.safetensors.resume").exists()
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(ProblemsError, match="stepps"):
        train_mend.recipe(model, workspace, {}, ["train.stepps=3"])
    with pytest.raises(ProblemsError, match="key=value"):
        train_mend.recipe(model, workspace, {}, ["train.steps"])
    with pytest.raises(ProblemsError, match=r"'train\.data\.size' is given two values"):
        train_mend.recipe(model, workspace, {"size": 40}, ["train.data.size=41"])
    with pytest.raises(SpecError, match="no recipe"):
        train_mend.recipe(ModelSpec(name="other"), workspace, {}, [])
