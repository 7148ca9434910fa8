"""Least squares of the editors: exact fixtures, and the identities of docs/methods/simie.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from raysweep.editors.linalg import cholesky, chunks, ridge
from raysweep.editors.wrappers.simie.config import SimIEConfig
from raysweep.editors.wrappers.simie.recursive import advance_total
from raysweep.editors.wrappers.simie.wrapper import SimIE
from raysweep.errors import ArtifactError, SpecError
from raysweep.models.patches import Dense, LowRank, add_deltas

W0 = torch.tensor([[1.0, 0, 2], [0, 1, -1]], dtype=torch.float64)
KEYS = [
    torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64),
    torch.tensor([[1.0], [1], [0]], dtype=torch.float64),
]
DELTAS = [
    torch.tensor([[0.1, 0.2, 0], [0, -0.1, 0.3]], dtype=torch.float64),
    torch.tensor([[0.2, 0, 0.1], [0.1, 0.1, 0]], dtype=torch.float64),
]
AFTER_ONE = [[1.00952381, 0.07619048, 2.08571429], [0.10476190, 1.03809524, -0.85714286]]
AFTER_TWO = {
    "sequential": [[1.08359788, 0.15026455, 2.02645503], [0.17883598, 1.11216931, -0.91640212]],
    "init": [[1.05185185, 0.11851852, 2.05185185], [0.12592593, 1.05925926, -0.87407407]],
}
BACKENDS = ("woodbury64", "chol64", "svd", "ref_fp32_lu")


def run(lam: float, mode: str, backend: str, w0: Tensor, keys: list[Tensor], deltas: list[Tensor]) -> list[Tensor]:
    """Return W_t after each edit, driving the wrapper's own steps: absorb the keys, correct the change, remember it."""
    simie = SimIE(SimIEConfig(lam=lam, mode=mode, backend=backend), inner=None)  # type: ignore[arg-type]
    memory = simie.initial_memory(lam, w0)
    weight, out = w0.clone(), []
    part: dict[str, Any] = {"left": [], "right": []} if mode == "init" and backend == "woodbury64" else {}
    for k, d in zip(keys, deltas, strict=True):
        memory, absorbed = simie.absorb_keys(memory, k)
        if mode == "init" and backend != "woodbury64":
            # the wrapper keeps the total in fp32; here we want the algebra itself
            part = {"total": (weight - w0).to(memory["gram"].dtype)}
        change = simie.correct(part, Dense(d), absorbed)
        part = advance_total(part, change)
        weight = weight + change.dense().double()
        out.append(weight)
    return out


@pytest.mark.parametrize("mode", ["sequential", "init"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_simie_fixture(mode: str, backend: str) -> None:
    one, two = run(0.5, mode, backend, W0, KEYS, DELTAS)
    torch.testing.assert_close(one, torch.tensor(AFTER_ONE, dtype=torch.float64), atol=2e-6, rtol=0)
    torch.testing.assert_close(two, torch.tensor(AFTER_TWO[mode], dtype=torch.float64), atol=2e-6, rtol=0)


def test_simie_closed_form_fixture() -> None:
    sums = sum(d @ k @ k.T for d, k in zip(DELTAS, KEYS, strict=True))
    gram = sum(k @ k.T for k in KEYS)
    torch.testing.assert_close(sums, torch.tensor([[0.3, 0.4, 0.3], [0.5, 0.4, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(gram, torch.tensor([[2.0, 1, 1], [1, 2, 1], [1, 1, 2]], dtype=torch.float64))
    closed = W0 + ridge.closed_form(sums, gram, 0.5)  # type: ignore[arg-type]
    torch.testing.assert_close(closed, torch.tensor(AFTER_TWO["init"], dtype=torch.float64), atol=1e-8, rtol=0)


def inverse(state: ridge.RidgeInverse) -> Tensor:
    """Return Q as one matrix."""
    base = torch.eye(state.keys[0].shape[1]).double() / state.lam if state.inverse is None else state.inverse
    return base - sum(r.T @ r for r in state.rows)  # type: ignore[no-any-return]


def test_simie_inverse_fixture() -> None:
    state, _, _ = ridge.woodbury(ridge.RidgeInverse(0.5), KEYS[0], refresh=100, tolerance=1e-8)
    first = [[1.04761905, 0.38095238, -0.57142857], [0.38095238, 1.04761905, -0.57142857]]
    assert state.inverse is not None  # two keys of width three are kept as a matrix
    torch.testing.assert_close(state.inverse[:2], torch.tensor(first, dtype=torch.float64), atol=1e-8, rtol=0)
    assert float(state.inverse[2, 2]) == pytest.approx(0.85714286)
    state, _, _ = ridge.woodbury(state, KEYS[1], refresh=100, tolerance=1e-8)
    assert state.inverse is not None
    wanted = torch.full((3, 3), -0.14814815, dtype=torch.float64).fill_diagonal_(0.51851852)
    torch.testing.assert_close(state.inverse, wanted, atol=1e-8, rtol=0)


def problem(
    edits: int, *, d: int = 40, out: int = 12, k: int = 4, seed: int = 0
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Random edits whose first key is shared, as BOS is."""
    rng = torch.Generator().manual_seed(seed)
    shared = 5 * torch.randn(d, 1, generator=rng, dtype=torch.float64)
    keys = [torch.cat([shared, torch.randn(d, k, generator=rng, dtype=torch.float64)], 1) for _ in range(edits)]
    deltas = [torch.randn(out, d, generator=rng, dtype=torch.float64) for _ in range(edits)]
    return torch.randn(out, d, generator=rng, dtype=torch.float64), keys, deltas


@pytest.mark.parametrize("lam", [0.01, 1.0, 50.0])
def test_init_mode_is_the_regularised_ideal_editor(lam: float) -> None:
    """: W_T = W_0 + A (λI + C)⁻¹, for every T from one accumulation."""
    w0, keys, deltas = problem(30)
    path = run(lam, "init", "woodbury64", w0, keys, deltas)
    for t in (1, 3, 30):
        sums = sum(d @ k @ k.T for d, k in zip(deltas[:t], keys[:t], strict=True))
        gram = sum(k @ k.T for k in keys[:t])
        ideal = ridge.closed_form(sums, gram, lam)  # type: ignore[arg-type]
        assert float((path[t - 1] - w0 - ideal).norm() / ideal.norm()) < 1e-9


@pytest.mark.parametrize("mode", ["sequential", "init"])
def test_simie_telescopes(mode: str) -> None:
    """(W_T − W_0) P_T = Σ (W_e,t − W_0) G_t in both modes, to 1e-12."""
    w0, keys, deltas = problem(20)
    path = run(1.0, mode, "woodbury64", w0, keys, deltas)
    before = [w0, *path[:-1]]
    base = [(b if mode == "sequential" else w0) + d for b, d in zip(before, deltas, strict=True)]
    right = sum((e - w0) @ k @ k.T for e, k in zip(base, keys, strict=True))
    gram = torch.eye(40, dtype=torch.float64) + sum(k @ k.T for k in keys)
    left = (path[-1] - w0) @ gram
    assert float((left - right).norm() / right.norm()) < 1e-12  # type: ignore[union-attr,operator]


def test_init_mode_does_not_depend_on_the_order() -> None:
    w0, keys, deltas = problem(12)
    forward = run(2.0, "init", "woodbury64", w0, keys, deltas)[-1]
    backward = run(2.0, "init", "woodbury64", w0, keys[::-1], deltas[::-1])[-1]
    torch.testing.assert_close(forward, backward, rtol=1e-10, atol=1e-10)


def test_two_workers_add_their_sums() -> None:
    """(A, C) of two halves of the edits, added, give the weights of one pass."""
    w0, keys, deltas = problem(12)
    halves = []
    for some in (range(0, 12, 2), range(1, 12, 2)):
        halves.append((sum(deltas[t] @ keys[t] @ keys[t].T for t in some), sum(keys[t] @ keys[t].T for t in some)))
    (a, c), (b, d) = halves
    both = w0 + ridge.closed_form(a + b, c + d, 2.0)  # type: ignore[operator]
    whole = run(2.0, "init", "woodbury64", w0, keys, deltas)[-1]
    torch.testing.assert_close(both, whole, rtol=1e-10, atol=1e-10)


def test_infinite_ridge_leaves_the_weights_and_no_ridge_keeps_the_edit() -> None:
    w0, keys, deltas = problem(1)
    assert float((run(1e12, "sequential", "woodbury64", w0, keys, deltas)[0] - w0).norm()) < 1e-6
    kept = run(1e-9, "sequential", "chol64", w0, keys, deltas)[0]
    torch.testing.assert_close(kept @ keys[0], (w0 + deltas[0]) @ keys[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lam", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("mode", ["sequential", "init"])
def test_woodbury_equals_the_direct_solve_at_every_edit(mode: str, lam: float) -> None:
    """≤ 1e-9 after every one of 60 edits; a shared key, repeated edits, from none to five times d keys."""
    w0, keys, deltas = problem(50, d=60)
    keys, deltas = [*keys, *keys[:10]], [*deltas, *deltas[5:15]]
    pairs = zip(*(run(lam, mode, b, w0, keys, deltas) for b in ("woodbury64", "chol64")), strict=True)
    assert max(float((a - b).norm() / (b - w0).norm()) for a, b in pairs) < 1e-9


def test_woodbury_keeps_no_matrix_until_half_as_many_keys_as_their_width() -> None:
    _, keys, _ = problem(30, d=60)
    state = ridge.RidgeInverse(1.0)
    for number, k in enumerate(keys, 1):
        before = [c.clone() for c in (*state.keys, *state.rows)]
        after, gain, _ = ridge.woodbury(state, k, refresh=100, tolerance=1e-8)
        assert all(torch.equal(a, b) for a, b in zip((*state.keys, *state.rows), before, strict=True))
        state = after
        assert (state.inverse is None) == (5 * number < 30)
        assert chunks.n_rows(state.rows) == chunks.n_rows(state.keys) < (30 if state.inverse is None else 7)
        gram = torch.eye(60, dtype=torch.float64) + sum(one @ one.T for one in keys[:number])
        torch.testing.assert_close(inverse(state), torch.linalg.inv(gram), rtol=0, atol=1e-10)
        torch.testing.assert_close(gain, torch.linalg.solve(gram, k), rtol=0, atol=1e-10)
        if state.keys:
            torch.testing.assert_close(state.matrix(), gram)


def test_chunks_are_few_and_in_order() -> None:
    rows, kept = torch.arange(40.0)[:, None], list[Tensor]()
    for start, stop in ((0, 3), (3, 5), (5, 12), (12, 13), (13, 14), (14, 40)):
        kept = chunks.append_chunk(kept, rows[start:stop])
        assert torch.equal(torch.cat(kept), rows[:stop])
        assert len(kept) <= 3
    for _ in range(100):
        kept = chunks.append_chunk(kept, rows[:4])
    assert len(kept) < 8


@pytest.mark.parametrize("d", [7, 384, 500])
def test_squares_are_sums_of_products(d: int) -> None:
    rng = torch.Generator().manual_seed(4)
    blocks = [torch.randn(n, d, generator=rng, dtype=torch.float64) for n in (5, 2)]
    base = blocks[0].T @ blocks[0]
    base = (base + base.T) / 2
    found = chunks.add_gram(base, blocks, scale=-1.0)
    torch.testing.assert_close(found, base - sum(r.T @ r for r in blocks))
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-13)
    torch.testing.assert_close(chunks.add_gram(None, blocks), sum(r.T @ r for r in blocks))
    assert chunks.add_gram(base, []) is base


def test_equal_keys_merge_exactly() -> None:
    rng = torch.Generator().manual_seed(3)
    keys = torch.randn(6, 5, generator=rng, dtype=torch.float64)[[0, 1, 0, 2, 0, 1, 3]]
    values = torch.randn(7, 4, generator=rng, dtype=torch.float64)
    few, sums = ridge.merge_equal_keys(keys, values)
    assert few.shape == (4, 5)
    torch.testing.assert_close(few.T @ few, keys.T @ keys)
    torch.testing.assert_close(few.T @ sums, keys.T @ values)
    dual, primal = ridge.NormalEquations.dual(keys, values), ridge.NormalEquations(keys.T @ keys, keys.T @ values)
    assert dual.keys is not None
    torch.testing.assert_close(dual.solve(0.3).T @ dual.keys, primal.solve(0.3).T)
    torch.testing.assert_close(primal.solve(0.3).T, ridge.closed_form(primal.right.T, primal.matrix, 0.3))


@pytest.mark.parametrize("held", [2, 30])  # keys in the memory: below and above half of d
def test_woodbury_refreshes_when_it_drifts_or_ages_or_fails(held: int) -> None:
    _, (first, *_), _ = problem(1, d=16, k=held - 1)
    _, keys, _ = problem(3, d=16, k=1, seed=1)
    begun, _, _ = ridge.woodbury(ridge.RidgeInverse(1.0), first, refresh=100, tolerance=1e-8)
    assert (begun.inverse is None) == (held == 2)
    state = begun
    for k in keys:
        state, _, _ = ridge.woodbury(state, k, refresh=3, tolerance=1e-8)
        assert (state.age == 0) == (k is keys[1])  # with the first that is three updates: a new inverse
    gram = torch.eye(16, dtype=torch.float64) + first @ first.T + keys[0] @ keys[0].T
    spoilt = replace(
        begun, rows=[r * 0.9 for r in begun.rows], inverse=None if begun.inverse is None else begun.inverse * 1.1
    )
    broken = replace(
        begun, rows=[r * 1e3 for r in begun.rows], inverse=None if begun.inverse is None else -begun.inverse
    )
    assert ridge.woodbury(spoilt, keys[0], refresh=100, tolerance=1e-8)[2] is None  # not looked at this time
    for bad in (replace(spoilt, age=8), broken):
        mended, gain, drift = ridge.woodbury(bad, keys[0], refresh=100, tolerance=1e-8)
        assert mended.age == 0
        assert drift is not None
        assert drift < 1e-12
        torch.testing.assert_close(mended.inverse, torch.linalg.inv(gram), rtol=0, atol=1e-10)
        torch.testing.assert_close(gain, torch.linalg.solve(gram, keys[0]), rtol=0, atol=1e-10)
        assert not mended.rows
        assert not mended.keys


def test_keys_too_large_for_the_ridge_are_an_error() -> None:
    twins = torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    with pytest.raises(SpecError, match="λ = 1e-30 is too small beside keys of energy 5"):
        ridge.woodbury(ridge.RidgeInverse(1e-30), twins, refresh=100, tolerance=1e-8)


def test_an_inverse_in_fp32_trips_the_monitor() -> None:
    """kept in fp32, Q drifts beyond the tolerance and is made anew; in fp64 it does not within fifty edits."""
    _, keys, _ = problem(50, d=60)

    def ages(dtype: torch.dtype) -> list[int]:
        state, found = ridge.RidgeInverse(0.1), []
        for k in keys:
            state, _, _ = ridge.woodbury(state, k, refresh=100, tolerance=1e-8)
            found.append(state.age)
            kept = {"rows": [r.to(dtype).double() for r in state.rows]}
            if state.inverse is not None:
                kept["inverse"] = state.inverse.to(dtype).double()
            state = replace(state, **kept)
        return found

    assert ages(torch.float64) == list(range(1, 51))
    assert ages(torch.float32)[8:].count(0) > 30


@pytest.mark.parametrize("n", [1, 5])
def test_spread_equals_the_solve(n: int) -> None:
    """the shortcut equals (w C + K Kᵀ)⁻¹ K."""
    rng = torch.Generator().manual_seed(1)
    root = torch.randn(30, 60, generator=rng, dtype=torch.float64)
    c, keys = root @ root.T / 60, torch.randn(30, n, generator=rng, dtype=torch.float64)
    direct = torch.linalg.solve(7.0 * c + keys @ keys.T, keys)
    torch.testing.assert_close(cholesky.low_rank_update(cholesky.factor(c), 7.0, keys), direct, rtol=1e-10, atol=1e-12)


def test_an_inverse_solves_as_the_factor_does() -> None:
    """What an accelerator keeps, where a product is one step and a triangular solve many."""
    rng = torch.Generator().manual_seed(3)
    root = torch.randn(30, 60, generator=rng, dtype=torch.float64)
    factor, right = cholesky.factor(root @ root.T / 60), torch.randn(30, 4, generator=rng)
    inverse = cholesky.Factor(torch.cholesky_inverse(factor.matrix), is_inverse=True)
    torch.testing.assert_close(inverse.solve(right), factor.solve(right), rtol=1e-10, atol=1e-12)


def test_singular_moments_are_refused_with_the_cure() -> None:
    with pytest.raises(ArtifactError, match=r"not positive definite(.|\n)*moments\.tokens"):
        cholesky.factor(torch.zeros(3, 3))
    cholesky.factor(torch.diag(torch.tensor([1.0, 1.0, 0.0])), damping=1e-3)


def test_low_rank_changes_add_up() -> None:
    rng = torch.Generator().manual_seed(2)
    a, b = (LowRank(torch.randn(4, 1, generator=rng), torch.randn(1, 6, generator=rng)) for _ in range(2))
    total = add_deltas(add_deltas(None, a), b)
    assert isinstance(total, LowRank)
    torch.testing.assert_close(total.dense().float(), a.dense() + b.dense())
    keys = torch.randn(6, 3, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(total.times(keys), total.dense() @ keys)
    mixed = add_deltas(a, Dense(b.dense()))
    torch.testing.assert_close(mixed.dense(), a.dense() + b.dense())


def test_drift_is_the_relative_error_in_the_norm_of_the_regression() -> None:
    _, keys, _ = problem(9, d=30)
    state = ridge.RidgeInverse(0.1)
    seen = []
    for k in keys[:8]:
        state, _, drift = ridge.woodbury(state, k, refresh=100, tolerance=1e-8)
        seen.append(drift)
    assert [d is None for d in seen] == [False] + 7 * [True]
    assert state.inverse is not None
    error = 1e-6 * torch.eye(30, dtype=torch.float64) * state.inverse.diagonal().mean()
    _, _, drift = ridge.woodbury(replace(state, inverse=state.inverse + error), keys[8], refresh=100, tolerance=1.0)
    gram = 0.1 * torch.eye(30, dtype=torch.float64) + sum(k @ k.T for k in keys)
    wrong = torch.linalg.inv(gram - keys[8] @ keys[8].T) + error
    mixed = keys[8] @ torch.tensor([1.0, -1, 1, -1, 1], dtype=torch.float64)
    gain = wrong @ keys[8] @ torch.linalg.inv(torch.eye(5, dtype=torch.float64) + keys[8].T @ wrong @ keys[8])
    off = gain @ torch.tensor([1.0, -1, 1, -1, 1], dtype=torch.float64) - torch.linalg.solve(gram, mixed)
    wanted = float(((off @ gram @ off) / (mixed @ torch.linalg.solve(gram, mixed))).sqrt())
    assert drift == pytest.approx(wanted, rel=0.05)
    assert 1e-6 < wanted < 1e-2


@pytest.mark.parametrize("n", [6, 15, 40])  # below, above and far above the width; two keys come twice
def test_gcv_is_leave_one_out_of_evenly_rotated_data(n: int) -> None:
    """Golub, Heath, Wahba 1979: rotated so that every column has the same leverage, GCV is the mean leave-one-out error."""
    rng = torch.Generator().manual_seed(n)
    keys = torch.randn(12, n, generator=rng, dtype=torch.float64)
    keys[:, -2:] = keys[:, :2]
    values = torch.randn(3, n, generator=rng, dtype=torch.float64)
    _, _, right = torch.linalg.svd(keys)
    rotation = right.T.to(torch.complex128) @ torch.fft.fft(torch.eye(n, dtype=torch.complex128), norm="ortho").mH
    turned, wanted = keys.to(torch.complex128) @ rotation, values.to(torch.complex128) @ rotation
    lams = [0.01, 0.5, 20.0]
    errors = []
    for lam in lams:
        found = 0.0
        for j in range(n):
            k, b = (torch.cat([t[:, :j], t[:, j + 1 :]], dim=1) for t in (turned, wanted))
            fit = b @ k.mH @ torch.linalg.inv(k @ k.mH + lam * torch.eye(12))
            found += float((fit @ turned[:, j] - wanted[:, j]).abs().square().sum()) / n
        errors.append(found)
    square = float(values.square().sum())
    dual, primal = ridge.NormalEquations.dual(keys.T, values.T), ridge.NormalEquations(keys @ keys.T, keys @ values.T)
    assert dual.gcv(lams, n, square) == pytest.approx(errors, rel=1e-8)
    assert primal.gcv(lams, n, square) == pytest.approx(errors, rel=1e-8)


def test_gcv_finds_the_noise() -> None:
    """Values that are a linear map of the keys and noise: the chosen λ predicts new ones nearly as well as the best λ does."""
    rng = torch.Generator().manual_seed(5)
    keys = torch.randn(200, 40, generator=rng, dtype=torch.float64)
    mapping = torch.randn(40, 6, generator=rng, dtype=torch.float64)
    for noise in (0.1, 10.0):
        values = keys @ mapping + noise * torch.randn(200, 6, generator=rng, dtype=torch.float64)
        lams = [10 ** (i / 2) for i in range(-8, 9)]
        normal = ridge.NormalEquations(keys.T @ keys, keys.T @ values)
        errors = normal.gcv(lams, 200, float(values.square().sum()))
        off = [float((normal.solve(lam) - mapping).norm()) for lam in lams]
        assert off[errors.index(min(errors))] < 1.1 * min(off)
