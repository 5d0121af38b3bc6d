"""One pass over weights: the same figures as float64 arithmetic gives, whatever the values, the threads and the memory."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_checkpoints import ema_state, save_trainer, state

from f5lab import ema, paths, provenance
from f5lab.checkpoints import open_checkpoint
from f5lab.errors import CheckpointError
from f5lab.weights import anatomy, diffs, stored_scans
from f5lab.weights.reductions import Tally, reduce_exactly, reduce_in_parts
from f5lab.weights.scans import Scan, scan_weights
from f5lab.weights.sums import Sums, Totals

TIGHT = 1e-6
"""The relative error that is allowed against a reference in float64."""


def weights(dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """Return tensors around chunks' and blocks' ends: odd sizes, several chunks, wide ranges, zeros, a transposed one."""
    g = torch.Generator().manual_seed(seed)
    sizes = {"a": (3, 5), "b": (7681,), "c": (600, 900), "d": (480,), "e": (1,)}
    made = {f"transformer.{name}.weight": torch.randn(shape, generator=g) * 0.02 for name, shape in sizes.items()}
    wide = torch.randn(5000, generator=g) * torch.exp2(torch.randint(-14, 12, (5000,), generator=g).float())
    made["transformer.wide.weight"] = wide.where(torch.rand(5000, generator=g) > 0.1, torch.zeros(()))
    made["transformer.turned.weight"] = torch.randn(30, 50, generator=g).T
    made["transformer.empty.weight"] = torch.zeros(0, 4)
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def reference_totals(tensor: torch.Tensor) -> Totals:
    x = tensor.double().numpy().ravel()
    fit = x[np.isfinite(x)]
    exponents = np.where(fit == 0, 0, np.clip(np.frexp(fit)[1] - 1 + 127, 0, 254))
    keys, counts = np.unique(exponents, return_counts=True)
    return Totals(
        n=x.size, energy=math.fsum((fit * fit).tolist()), total=math.fsum(fit.tolist()),
        minimum=float(fit.min(initial=math.inf)), maximum=float(fit.max(initial=-math.inf)),
        zeros=int((fit == 0).sum()), nan=int(np.isnan(x).sum()), inf=int(np.isinf(x).sum()),
        histogram=tuple(zip(keys.tolist(), counts.tolist(), strict=True)),
    )  # fmt: skip


def assert_totals(found: Totals, known: Totals) -> None:
    assert (found.n, found.zeros, found.nan, found.inf) == (known.n, known.zeros, known.nan, known.inf)
    assert found.histogram == known.histogram
    assert (found.minimum, found.maximum) == (known.minimum, known.maximum)
    assert found.energy == pytest.approx(known.energy, rel=1e-12)
    assert found.total == pytest.approx(known.total, rel=1e-12, abs=1e-12 * math.sqrt(known.energy * known.n or 1))


def assert_sums(sums: Sums, a: np.ndarray, b: np.ndarray, base: np.ndarray | None) -> None:
    fit = np.isfinite(a) & np.isfinite(b) & (np.isfinite(base) if base is not None else True)
    a, b = a[fit], b[fit]
    assert (sums.n, sums.left_out) == (fit.sum(), (~fit).sum())
    if not (a @ a and b @ b):
        return
    assert sums.relative_l2 == pytest.approx(math.sqrt((a - b) @ (a - b) / (a @ a)), rel=TIGHT)
    assert sums.cosine == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), rel=TIGHT, abs=1e-12)
    assert sums.largest == pytest.approx(np.abs(a - b).max(), rel=TIGHT)
    if base is None:
        return
    u, v = a - base[fit], b - base[fit]
    assert sums.moved == pytest.approx(math.sqrt(u @ u / (base[fit] @ base[fit])), rel=TIGHT)
    assert sums.alpha == pytest.approx(u @ v / (u @ u), rel=TIGHT, abs=1e-12)
    if not v @ v:
        assert (sums.vv, sums.uv) == (0, 0)
        return
    assert sums.path_cosine == pytest.approx(u @ v / math.sqrt((u @ u) * (v @ v)), rel=TIGHT, abs=1e-12)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "numpy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_pass_equals_a_float64_reference(dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("f5lab.weights.scans.COMPILED_FROM", 0 if compiled else 1 << 60)
    base = weights(dtype, 0)
    a = {
        name: (t.double() + 0.1 * s.double()).to(dtype)
        for (name, t), s in zip(base.items(), weights(dtype, 1).values(), strict=True)
    }
    b = {name: (t.double() + 0.01 * (a[name].double() - t.double())).to(dtype) for name, t in base.items()}
    a["transformer.b.weight"][[3, 4, 700]] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
    b["transformer.c.weight"][5, 6] = torch.nan
    for sets in ((a,), (a, b), (a, b, base)):
        scan = scan_weights(*sets)
        assert len(scan.totals) == min(len(sets), 2)
        for held, totals in zip(sets, scan.totals, strict=False):
            for name, tensor in held.items():
                assert_totals(totals[name], reference_totals(tensor))
        for name, sums in scan.sums.items():
            assert_sums(sums, *[s[name].double().numpy().ravel() for s in (*sets, None, None)[:3] if s is not None],
                        **({"base": None} if len(sets) == 2 else {}))  # fmt: skip
        assert list(scan.sums) == ([] if len(sets) == 1 else list(a))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([0, 1, 31, 479, 480, 481, 7679, 7681, 20_000]),
       st.sampled_from(["any", "finite", "near one", "tiny", "small", "spread"]))  # fmt: skip
def test_the_compiled_loops_agree_with_numpy_on_any_bits(seed: int, arrays: int, size: int, kind: str) -> None:
    """NaN, infinity, subnormals, both zeros and values whose difference overflows are among them."""
    rng = np.random.default_rng(seed)
    low, high = {"any": (0, 256), "finite": (0, 255), "near one": (120, 129), "tiny": (0, 3), "small": (0, 6 + seed % 14),
                 "spread": (100, 108 + seed % 16)}[kind]  # fmt: skip
    exponents = rng.integers(low, high, (arrays, size), dtype=np.uint32) << 23
    bits = exponents | rng.integers(0, 1 << 23, (arrays, size), dtype=np.uint32) & rng.choice(
        [0, 0x7FFFFF], (arrays, size)
    ).astype(np.uint32)
    bits |= rng.integers(0, 2, (arrays, size), dtype=np.uint32) << 31
    values = list(bits.view(np.float32))
    exact, tally = reduce_exactly(values, counted=True), Tally(1)
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite([*values, values[0] - values[min(1, arrays - 1)]]).all()
    assert tally.take(0, values, True, ()) == (finite and size > 0)
    if not size:
        return
    fast = tally.reduced([size], [arrays], [True])[0] if finite else reduce_in_parts(values, counted=True)
    for found, known in zip(fast.totals, exact.totals, strict=True):
        assert_totals(found, known)
    if arrays > 1:
        pairs = [(getattr(fast.sums, name), getattr(exact.sums, name)) for name in ("aa", "bb", "dd", "pp", "uu", "vv")]
        assert all(found == pytest.approx(known, rel=1e-12) for found, known in pairs)
        assert (fast.sums.n, fast.sums.left_out) == (exact.sums.n, exact.sums.left_out)
        assert fast.sums.largest == pytest.approx(exact.sums.largest, rel=TIGHT)
        assert fast.sums.uv == pytest.approx(exact.sums.uv, abs=1e-12 * (exact.sums.uu + exact.sums.vv))


def test_figures_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("f5lab.weights.scans.COMPILED_FROM", 0)
    sets = [weights(torch.float32, seed) for seed in range(3)]
    assert scan_weights(*sets, seed=1, threads=1) == scan_weights(*sets, seed=1, threads=3)


def test_a_digest_tells_names_shapes_types_and_every_bit() -> None:
    plain = weights(torch.float32, 0)
    digests = [scan_weights(plain, seed=1).digests, scan_weights(plain, seed=2).digests]
    flipped = {name: tensor.clone() for name, tensor in plain.items()}
    flipped["transformer.c.weight"].view(torch.int32)[-1, -1] ^= 1
    zero = plain | {"transformer.e.weight": torch.zeros(1)}
    minus = plain | {"transformer.e.weight": -torch.zeros(1)}
    shaped = plain | {"transformer.a.weight": plain["transformer.a.weight"].reshape(5, 3)}
    named = {name.replace(".d.", ".D."): tensor for name, tensor in plain.items()}
    digests += [scan_weights(held, seed=1).digests for held in (flipped, zero, minus, shaped, named)]
    assert len(set(digests)) == len(digests)
    assert scan_weights({n: t.clone() for n, t in plain.items()}, seed=1).digests == digests[0]


@pytest.fixture
def remembering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Remember files of any size, in a cache of the test's own; return a list that grows with each pass."""
    monkeypatch.setenv("F5LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(provenance, "REMEMBER_BYTES", 0)
    passes: list[int] = []

    def counting(*sets: dict[str, torch.Tensor], **options: int) -> Scan:
        passes.append(len(sets))
        return scan_weights(*sets, **options)

    monkeypatch.setattr(stored_scans, "scan_weights", counting)
    return passes


def toy_pair(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    base = state(seed)
    raw = {name: t + 0.1 * s for (name, t), s in zip(base.items(), state(seed + 1).values(), strict=True)}
    average = {name: t + 0.25 * (raw[name] - t) for name, t in base.items()}
    tuned = save_trainer(folder / "model_last.pt", raw, ema_state(average), update=100)
    torch.save({"ema_model_state_dict": ema_state(base, 12_000)}, folder / "base.pt")
    return tuned, folder / "base.pt"


def test_a_second_look_reads_no_weights_again(tmp_path: Path, remembering: list[int]) -> None:
    tuned, base = toy_pair(tmp_path)
    facts = anatomy.checkpoint_facts(open_checkpoint(tuned), open_checkpoint(base))
    report = ema.report(tuned, base)
    assert remembering == [3]
    assert report["overall"]["alpha"] == pytest.approx(0.25, abs=1e-5)
    assert anatomy.checkpoint_facts(open_checkpoint(tuned), open_checkpoint(base)) == facts
    assert ema.report(tuned, base) == report
    assert remembering == [3]
    assert ema.report(tuned)["overall"]["relative_l2"] == pytest.approx(report["overall"]["relative_l2"], rel=1e-12)
    assert remembering == [3, 2]


def test_another_file_in_its_place_is_read(tmp_path: Path, remembering: list[int]) -> None:
    tuned, base = toy_pair(tmp_path)
    before = ema.report(tuned, base)["overall"]
    (tmp_path / "new").mkdir()
    other, _ = toy_pair(tmp_path / "new", seed=5)
    other.replace(tuned)
    assert ema.report(tuned, base)["overall"]["relative_l2"] != before["relative_l2"]
    assert remembering == [3, 3]


@pytest.mark.parametrize("cut", [False, True], ids=["altered", "cut"])
@pytest.mark.parametrize("place", [0, 1, 4], ids=["seed", "digest", "result"])
def test_a_damaged_memory_is_not_believed(tmp_path: Path, remembering: list[int], cut: bool, place: int) -> None:
    tuned, base = toy_pair(tmp_path)
    known = ema.report(tuned, base)
    entries = sorted((paths.cache_dir() / "scans").rglob("*.entry"), key=lambda entry: entry.stat().st_size)
    assert len(entries) == 5  # a seed, three digests and a result
    content = entries[place].read_bytes()
    start, last, end = content[:-4], content[-4], content[-3:]
    entries[place].write_bytes(start if cut else start + bytes([last ^ 1]) + end)
    assert ema.report(tuned, base) == known
    assert remembering == [3, 3]


def test_weights_that_change_while_they_are_read_are_refused(
    tmp_path: Path, remembering: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, base = toy_pair(tmp_path)
    checkpoint = open_checkpoint(tuned)

    def disturbed(*sets: dict[str, torch.Tensor], **options: int) -> Scan:
        found = scan_weights(*sets, **options)
        with tuned.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\1")
        return found

    monkeypatch.setattr(stored_scans, "scan_weights", disturbed)
    with pytest.raises(CheckpointError, match="changed since"):
        stored_scans.scan_checkpoint(checkpoint, open_checkpoint(base))
    assert not [e for e in (paths.cache_dir() / "scans").rglob("*.entry") if e.stat().st_size > 100]


def test_compare_is_the_same_pass() -> None:
    a, b = state(0), state(1)
    assert diffs.compare(a, b).overall == diffs.comparison_of(scan_weights(a, b, counted=False), a, b).overall


def test_whole_numbers_that_differ_are_not_passed_over() -> None:
    numbers, other = torch.arange(4, dtype=torch.int8), -torch.arange(4, dtype=torch.int8)
    mixed = scan_weights({"w": numbers}, {"w": numbers.float() + 1})
    assert mixed.sums["w"].dd == 4 and not mixed.reshaped
    assert scan_weights({"w": numbers}, {"w": other}).reshaped == {"w": "other values: int8 / int8"}
    same = scan_weights({"w": numbers}, {"w": numbers.clone()})
    assert not same.sums and not same.reshaped


def test_floats_that_numpy_lacks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("f5lab.weights.scans.COMPILED_FROM", 1 << 60)
    short = torch.tensor([0.5, -2.0]).to(torch.float8_e4m3fn)
    assert scan_weights({"w": short}, seed=1).totals[0]["w"].energy == 4.25


def test_the_cosine_of_very_unequal_weights_is_not_cancelled_away() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(20_000).astype(np.float32) for _ in range(2))
    tally = Tally(1)
    assert tally.take(0, [a, b * np.float32(1e-15)], False, ())
    (found,) = tally.reduced([a.size], [2], [False])
    expected = float(a.astype(float) @ b / np.sqrt((a.astype(float) @ a) * (b.astype(float) @ b)))
    assert found.sums.cosine == pytest.approx(expected, rel=1e-4)


def test_complex_numbers_count_with_both_parts(tmp_path: Path) -> None:
    a = torch.tensor([[1 + 2j, 0 - 3j]], dtype=torch.complex64)
    found = scan_weights({"x": a}, {"x": a.conj()})
    sums = found.sums["x"]
    assert sums.aa == sums.bb == 14 and sums.dd == 16 + 36
