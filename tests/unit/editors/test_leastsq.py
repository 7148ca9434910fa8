"""The exact fixtures of editors.md §17.1 and the identities of §13."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raysweep.editors import leastsq
from raysweep.editors.base import Dense, LowRank, plus
from raysweep.editors.wrappers.simie import SimIE, SimIEConfig
from raysweep.errors import ArtifactError

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
    """Return W_t after each edit, driving the wrapper's own two steps: absorb the keys, correct the change."""
    simie = SimIE(SimIEConfig(lam=lam, mode=mode, backend=backend), inner=None)  # type: ignore[arg-type]
    dtype = torch.float32 if backend == "ref_fp32_lu" else torch.float64
    ridge = leastsq.ridge_begin(w0.shape[1], lam, inverse=backend == "woodbury64", dtype=dtype, device=w0.device)
    memory: dict[str, object] = {"lam": ridge.lam, "gram": ridge.gram, "age": 0}
    if ridge.inverse is not None:
        memory["inverse"] = ridge.inverse
    weight, out = w0.clone(), []
    for k, d in zip(keys, deltas, strict=True):
        memory, (columns, gain, _) = simie._absorb(memory, k)
        # the wrapper keeps the total in fp32; here we want the algebra itself
        part = {"total": (weight - w0).to(dtype)} if mode == "init" else {}
        weight = weight + simie._correct(part, Dense(d), columns, gain).dense().double()
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
    closed = W0 + leastsq.closed_form(sums, gram, 0.5)  # type: ignore[arg-type]
    torch.testing.assert_close(closed, torch.tensor(AFTER_TWO["init"], dtype=torch.float64), atol=1e-8, rtol=0)


def test_simie_inverse_fixture() -> None:
    state = leastsq.ridge_begin(3, 0.5, inverse=True, dtype=torch.float64, device=W0.device)
    state, _, _ = leastsq.woodbury(state, KEYS[0], refresh=100, tolerance=1e-8)
    first = [[1.04761905, 0.38095238, -0.57142857], [0.38095238, 1.04761905, -0.57142857]]
    torch.testing.assert_close(state.inverse[:2], torch.tensor(first, dtype=torch.float64), atol=1e-8, rtol=0)  # type: ignore[index]
    assert float(state.inverse[2, 2]) == pytest.approx(0.85714286)  # type: ignore[index]
    state, _, _ = leastsq.woodbury(state, KEYS[1], refresh=100, tolerance=1e-8)
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
    """§13.8: W_T = W_0 + A (λI + C)⁻¹, for every T from one accumulation."""
    w0, keys, deltas = problem(30)
    path = run(lam, "init", "woodbury64", w0, keys, deltas)
    for t in (1, 3, 30):
        sums = sum(d @ k @ k.T for d, k in zip(deltas[:t], keys[:t], strict=True))
        gram = sum(k @ k.T for k in keys[:t])
        ideal = leastsq.closed_form(sums, gram, lam)  # type: ignore[arg-type]
        assert float((path[t - 1] - w0 - ideal).norm() / ideal.norm()) < 1e-9


@pytest.mark.parametrize("mode", ["sequential", "init"])
def test_simie_telescopes(mode: str) -> None:
    """(W_T − W_0) P_T = Σ (W_e,t − W_0) G_t in both modes (§17.1), to 1e-12."""
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
    """§17.1: (A, C) of two halves of the edits, added, give the weights of one pass."""
    w0, keys, deltas = problem(12)
    halves = []
    for some in (range(0, 12, 2), range(1, 12, 2)):
        halves.append((sum(deltas[t] @ keys[t] @ keys[t].T for t in some), sum(keys[t] @ keys[t].T for t in some)))
    (a, c), (b, d) = halves
    both = w0 + leastsq.closed_form(a + b, c + d, 2.0)  # type: ignore[operator]
    whole = run(2.0, "init", "woodbury64", w0, keys, deltas)[-1]
    torch.testing.assert_close(both, whole, rtol=1e-10, atol=1e-10)


def test_infinite_ridge_leaves_the_weights_and_no_ridge_keeps_the_edit() -> None:
    w0, keys, deltas = problem(1)
    assert float((run(1e12, "sequential", "woodbury64", w0, keys, deltas)[0] - w0).norm()) < 1e-6
    kept = run(1e-9, "sequential", "chol64", w0, keys, deltas)[0]
    torch.testing.assert_close(kept @ keys[0], (w0 + deltas[0]) @ keys[0], rtol=1e-6, atol=1e-6)


def test_woodbury_equals_the_direct_solve_after_fifty_edits() -> None:
    """§17.2.10b: ≤ 1e-9 with a shared first key."""
    w0, keys, deltas = problem(50, d=60)
    a = run(0.1, "sequential", "woodbury64", w0, keys, deltas)[-1]
    b = run(0.1, "sequential", "chol64", w0, keys, deltas)[-1]
    assert float((a - b).norm() / b.norm()) < 1e-9


def test_woodbury_refreshes_when_it_drifts_or_ages() -> None:
    state = leastsq.ridge_begin(8, 1.0, inverse=True, dtype=torch.float64, device=W0.device)
    keys = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(3):
        state, _, drift = leastsq.woodbury(state, keys, refresh=3, tolerance=1e-8)
        assert drift < 1e-8
    assert state.age == 0  # the third update came from a new inverse
    spoilt = leastsq.RidgeState(state.lam, state.gram, state.inverse * 1.01, 0)  # type: ignore[operator]
    mended, _, drift = leastsq.woodbury(spoilt, keys, refresh=100, tolerance=1e-8)
    assert mended.age == 0
    assert drift < 1e-12


def test_an_inverse_in_fp32_trips_the_monitor() -> None:
    """§17.2.10b: kept in fp32, Q drifts beyond the tolerance and is made anew; in fp64 it does not within fifty edits."""
    _, keys, _ = problem(50, d=60)
    ages = {}
    for dtype in (torch.float32, torch.float64):
        state = leastsq.ridge_begin(60, 0.1, inverse=True, dtype=dtype, device=W0.device)
        ages[dtype] = []
        for k in keys:
            state, _, drift = leastsq.woodbury(state, k.to(dtype), refresh=100, tolerance=1e-8)
            ages[dtype].append(state.age)
    assert ages[torch.float64] == list(range(1, 51))
    assert ages[torch.float32].count(0) == 50
    assert drift < 1e-8


@pytest.mark.parametrize("n", [1, 5])
def test_spread_equals_the_solve(n: int) -> None:
    """§7.5: the shortcut equals (w C + K Kᵀ)⁻¹ K."""
    rng = torch.Generator().manual_seed(1)
    root = torch.randn(30, 60, generator=rng, dtype=torch.float64)
    c, keys = root @ root.T / 60, torch.randn(30, n, generator=rng, dtype=torch.float64)
    direct = torch.linalg.solve(7.0 * c + keys @ keys.T, keys)
    torch.testing.assert_close(leastsq.spread(leastsq.factor(c), 7.0, keys), direct, rtol=1e-10, atol=1e-12)


def test_singular_moments_are_refused_with_the_cure() -> None:
    with pytest.raises(ArtifactError, match=r"not positive definite(.|\n)*moments\.tokens"):
        leastsq.factor(torch.zeros(3, 3))
    leastsq.factor(torch.diag(torch.tensor([1.0, 1.0, 0.0])), damping=1e-3)


def test_low_rank_changes_add_up() -> None:
    rng = torch.Generator().manual_seed(2)
    a, b = (LowRank(torch.randn(4, 1, generator=rng), torch.randn(1, 6, generator=rng)) for _ in range(2))
    total = plus(plus(None, a), b)
    assert isinstance(total, LowRank)
    torch.testing.assert_close(total.dense().float(), a.dense() + b.dense())
    keys = torch.randn(6, 3, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(total.times(keys), total.dense() @ keys)
    mixed = plus(a, Dense(b.dense()))
    torch.testing.assert_close(mixed.dense(), a.dense() + b.dense())
