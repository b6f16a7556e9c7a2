"""Bytes, contact sheets and files with their recipe."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch

from pndm_fast.cli import images
from pndm_fast.plan.atomic import atomic_path


def test_to_uint8_rounds_and_clips():
    values = [-2.0, -1.0, 0.0, 1.0, 1.5, float("inf"), 2.49 / 127.5 - 1, 2.51 / 127.5 - 1]
    x = np.array(values).reshape(1, 1, 1, -1)
    assert images.to_uint8(x).ravel().tolist() == [0, 0, 128, 255, 255, 255, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_to_uint8_takes_every_float(dtype):
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(dtype)
    out = images.to_uint8(x.requires_grad_())
    assert out.shape == (2, 4, 5, 3) and out.dtype == np.uint8 and out.flags.c_contiguous
    expected = np.rint((x.detach().double().numpy() + 1) * 127.5).transpose(0, 2, 3, 1)
    assert np.array_equal(out, expected)


def test_to_uint8_inverts_the_scaling_of_training():
    levels = torch.arange(256).reshape(1, 1, 16, 16)
    assert np.array_equal(images.to_uint8(levels / 127.5 - 1).ravel(), np.arange(256))


def test_to_uint8_errors():
    x = torch.zeros(4, 1, 2, 2)
    x[2, 0, 1, 1] = float("nan")
    with pytest.raises(ValueError, match=r"NaN, got some in sample 2 \(1 of 4"):
        images.to_uint8(x)
    with pytest.raises(ValueError, match="got 4: latents"):
        images.to_uint8(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match=r"\[B, C, H, W\], got shape \[2, 2\]"):
        images.to_uint8(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="must be floating"):
        images.to_uint8(torch.zeros(1, 1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    "n, columns, shape", [(1, None, (8, 9)), (5, None, (14, 23)), (5, 5, (8, 37)), (3, 9, (8, 23))]
)
def test_grid_shape(n, columns, shape):
    """Pictures of 4 x 5 with two pixels around each."""
    assert images.grid(np.zeros((n, 4, 5, 3), np.uint8), columns).shape == (*shape, 3)


def test_grid_places_row_by_row():
    pictures = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 3, 1), np.uint8)
    sheet = images.grid(pictures)[:, :, 0]
    assert sheet[3::5, 3::5].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert np.count_nonzero(sheet) == 5 * 9


def test_grid_errors():
    with pytest.raises(ValueError, match="at least one"):
        images.grid(np.zeros((0, 2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        images.grid(np.zeros((1, 2, 2, 1), np.uint8), 0)
    with pytest.raises(ValueError, match="uint8"):
        images.grid(np.zeros((1, 2, 2, 1)))


RECIPE = {"solver": "f-pndm", "steps": 50, "seeds": [0, 2**63], "note": "Schrödinger λ"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("recipe", [None, RECIPE])
def test_png_round_trip(tmp_path, channels, recipe):
    pil = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(0).integers(0, 256, (6, 7, channels), dtype=np.uint8)
    images.save_png(tmp_path / "a.png", image, recipe)
    with pil.open(tmp_path / "a.png") as file:
        assert np.array_equal(np.asarray(file).reshape(image.shape), image)
    assert images.read_recipe(tmp_path / "a.png") == recipe
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("recipe", [None, RECIPE])
def test_npz_round_trip(tmp_path, recipe):
    batch = np.random.default_rng(0).integers(0, 256, (2, 6, 7, 3), dtype=np.uint8)
    images.save_npz(tmp_path / "a.npz", batch, recipe)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert np.array_equal(file["arr_0"], batch)
    assert images.read_recipe(tmp_path / "a.npz") == recipe


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.npz"
    images.save_npz(path, np.zeros((1, 2, 2, 1), np.uint8), {"good": 1})
    with pytest.raises(TypeError):
        images.save_npz(path, np.zeros((1, 2, 2, 1), np.uint8), {"bad": object()})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert images.read_recipe(path) == {"good": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_files_have_the_usual_permissions(tmp_path):
    old = os.umask(0o027)
    try:
        images.save_npz(tmp_path / "a.npz", np.zeros((1, 2, 2, 1), np.uint8))
    finally:
        os.umask(old)
    assert (tmp_path / "a.npz").stat().st_mode & 0o777 == 0o640


def test_png_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="got 4: latents"):
        images.save_png(tmp_path / "a.png", np.zeros((2, 2, 4), np.uint8))
    with pytest.raises(ValueError, match=r"uint8 \[H, W, C\]"):
        images.save_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'pndm_fast\[images\]'"):
        images.save_png(tmp_path / "a.png", np.zeros((2, 2, 1), np.uint8))
