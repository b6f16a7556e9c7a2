"""The normals: known answers of Philox, accuracy, distribution, numbering, independence, and Triton's same bits."""

import hashlib

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from pndm_fast.kernels.philox import normals_block
from scipy import stats

from pndm_fast.row import noise

# sha256 of 3 x 100,003 normals, from a transcription to numpy, whose operations are all correctly rounded
DIGEST = "612083031c304199ec370fe0635ddf169a96b46457a084096d8904d5ae95c980"
INDEXES = (noise.INITIAL, noise.PROLOGUE, noise.FIRST_ROW, 1001)


def words(*values):
    return tuple(torch.tensor([value]) for value in values)


def bits(tensor):
    return tensor.contiguous().view(torch.int32)


@pytest.mark.parametrize(
    "counter, key, answer",
    [
        ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ],
)
def test_philox_known_answers(counter, key, answer):
    """Random123's kat_vectors."""
    got = noise.philox(words(*counter), words(*key))
    assert " ".join(f"{int(word):08x}" for word in got) == answer


def test_the_bits_are_the_same_on_every_machine():
    """A square root or a product that this machine's library rounds otherwise would change them."""
    z = noise.normals(noise.seed_tensor([0, 1, 2**64 - 1]), noise.FIRST_ROW, 100_003)
    assert hashlib.sha256(bits(z).numpy().astype("<i4").tobytes()).hexdigest() == DIGEST


def exact(k1, k2):
    """The formula in float64, its angle reduced exactly."""
    u = np.float32(k1.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)).astype(np.float64)
    a = k2.astype(np.uint32).view(np.int32).astype(np.float32).astype(np.float64) * 2.0**-31
    quarter = np.floor(2 * a + 0.5)
    r = np.pi * (a - quarter / 2)
    q = quarter.astype(np.int64) % 4
    radius = np.sqrt(-2 * np.log(u))
    cos = np.choose(q, [np.cos(r), -np.sin(r), -np.cos(r), np.sin(r)])
    sin = np.choose(q, [np.sin(r), np.cos(r), -np.sin(r), -np.cos(r)])
    return radius * cos, radius * sin


@pytest.mark.slow
def test_within_four_ulp_of_the_formula():
    rng = np.random.default_rng(0)
    near = [base + d for base in range(0, 2**32 + 1, 2**29) for d in (-(2**8), -3, -1, 0, 1, 129)]
    edges = np.array([word % 2**32 for word in near], dtype=np.int64)
    grid = np.stack(np.meshgrid(edges, edges)).reshape(2, -1)
    k1, k2 = np.concatenate([grid, rng.integers(0, 2**32, (2, 3_000_000))], axis=1)
    got = noise._box_muller(torch.from_numpy(k1), torch.from_numpy(k2))
    for values, formula in zip(got, exact(k1, k2), strict=True):
        values = values.numpy()
        assert np.isfinite(values).all()
        error = np.abs(values - formula) / np.spacing(np.maximum(np.abs(formula).astype(np.float32), 2.0**-120))
        assert error.max() <= 4, error.max()


@pytest.fixture(scope="module")
def million():
    return noise.normals(noise.seed_tensor([12345]), noise.INITIAL, 2**20)[0].double().numpy()


def test_moments(million):
    """Within 5 standard errors of a standard normal's."""
    n = len(million)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((million**power).mean() - moment) < 5 * np.sqrt(variance / n)


@pytest.mark.parametrize("lane", range(4))
def test_kolmogorov_smirnov(million, lane):
    assert stats.kstest(million[lane::4], "norm").pvalue > 1e-3


def test_tails(million):
    for bound in (3.0, 4.0):
        expected = 2 * stats.norm.sf(bound) * len(million)
        assert abs((np.abs(million) > bound).sum() - expected) < 5 * np.sqrt(expected)


def test_indexes_seeds_and_lanes_are_independent():
    """Correlations of all pairs, of values and of squares, within 5.5 / sqrt(n)."""
    n = 2**16
    seeds = noise.seed_tensor([0, 1, 2, 2**32, 2**63, 2**64 - 1])
    rows = np.concatenate([noise.normals(seeds, index, n).double().numpy() for index in INDEXES])
    lanes = np.concatenate([rows[0].reshape(-1, 4).T, rows[1].reshape(-1, 4).T])
    for sample in (rows, lanes, np.stack([rows[0][:-1], rows[0][1:]])):
        for values in (sample, sample**2):
            correlation = np.corrcoef(values) - np.eye(len(values))
            assert np.abs(correlation).max() < 5.5 / np.sqrt(sample.shape[1])


def test_a_sample_depends_on_its_seed_alone():
    seeds = noise.seed_tensor([7, 8, 9])
    together = noise.normals(seeds, 3, 1003)
    assert torch.equal(bits(together[1]), bits(noise.normals(seeds[1:2], 3, 1003)[0]))
    assert torch.equal(bits(together[:, :10]), bits(noise.normals(seeds, 3, 10)))


@pytest.mark.parametrize("channels, pixels", [(3, 64), (4, 49), (7, 3)])
def test_channels_last_numbers_elements_logically(channels, pixels):
    seeds = noise.seed_tensor([5, 6])
    contiguous = noise.normals(seeds, 2, channels * pixels).view(2, channels, pixels)
    last = noise.normals(seeds, 2, channels * pixels, channels).view(2, pixels, channels)
    assert torch.equal(contiguous.transpose(1, 2), last)


@triton.jit(do_not_specialize=["index", "channels"])
def _normals_kernel(z_ptr, seeds_ptr, index, n, channels, SCATTERED: tl.constexpr, BLOCK: tl.constexpr):
    b, start = tl.program_id(1), tl.program_id(0).to(tl.int64) * BLOCK
    z = normals_block(tl.load(seeds_ptr + b), index, start, n, channels, SCATTERED, BLOCK)
    tl.store(z_ptr + (b * tl.num_programs(0) * BLOCK + start) + tl.arange(0, BLOCK), z)


@pytest.mark.slow
@pytest.mark.parametrize("n, channels", [(1, 1), (7, 1), (784, 1), (2100, 1), (3072, 3), (1544, 8), (21, 7), (1040, 2)])
def test_triton_has_the_same_bits(n, channels, triton_device):
    block = 1024
    seeds = noise.seed_tensor([0, 1, 2**64 - 1, 2**63 + 12345])
    for index in INDEXES if n < 1024 else INDEXES[-1:]:
        got = torch.empty(len(seeds), -(-n // block) * block, device=triton_device)
        grid = (got.shape[1] // block, len(seeds))
        _normals_kernel[grid](
            got, seeds.to(triton_device), index, n, channels, channels > 1, block, enable_fp_fusion=False
        )
        assert torch.equal(bits(got[:, :n].cpu()), bits(noise.normals(seeds, index, n, channels)))


def test_seed_tensor_keeps_all_64_bits():
    got = noise.seed_tensor([0, 2**63 - 1, 2**63, 2**64 - 1, np.uint64(2**64 - 2)])
    assert got.dtype == torch.int64
    assert got.tolist() == [0, 2**63 - 1, -(2**63), -1, -2]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range(seed):
    with pytest.raises(ValueError, match=rf"seeds must be in \[0, 2\^64\), got {seed} at position 1"):
        noise.seed_tensor([0, seed])


@pytest.mark.parametrize("seed", [1.0, "1", None, True])
def test_seeds_that_are_no_integers(seed):
    with pytest.raises(TypeError, match="seeds must be integers, got .* at position 0"):
        noise.seed_tensor([seed])
