"""Trains the demonstration networks on MNIST: `python examples/mnist/train.py --data DIR --out DIR`.

Every random number is a function of (seed, step), so a resumed run is the uninterrupted one.
"""

from __future__ import annotations

import gzip
import json
import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from processes import PROCESSES, Process
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pndm_fast.demo import mnist_unet
from pndm_fast.demo.unet import UNet
from pndm_fast.plan.atomic import atomic_path

_LR, _WARM_UP, _LAST_LR, _EMA, _DROP = 4e-4, 200, 0.02, 0.999, 0.1
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Recipe:
    """What the result depends on; a checkpoint is resumed only by the same."""

    epochs: int = 20
    batch: int = 128
    seed: int = 0
    process: str = "vp"


@dataclass
class Run:
    """Network, its moving average, optimizer, and the number of steps done."""

    net: UNet
    ema: UNet
    optimizer: torch.optim.AdamW
    step: int = 0


def read_idx(folder: Path, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array of `folder/name` or `folder/name.gz`, an idx file of bytes (yann.lecun.org/exdb/mnist).

    The header is 0, 0, 8 (bytes), the number of axes, then the axes as big-endian 32-bit integers.
    """
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.exists():
        data = plain.read_bytes()
    elif packed.exists():
        data = gzip.decompress(packed.read_bytes())
    else:
        raise FileNotFoundError(f"neither {plain} nor {packed} exists")
    axes = int(name.split("-idx")[1][0])
    if data[:4] != bytes([0, 0, 8, axes]):
        raise ValueError(f"{name}: must start with bytes 0, 0, 8, {axes}, got {list(data[:4])}")
    offset = 4 + 4 * axes
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, offset, 4)]
    if len(data) != offset + math.prod(shape):
        raise ValueError(f"{name}: {shape} must make {offset + math.prod(shape)} bytes, got {len(data)}")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape)


def load_mnist(folder: Path) -> tuple[Tensor, Tensor]:
    """Training images uint8 [N, 1, 28, 28] and labels int64 [N]."""
    images, labels = read_idx(folder, "train-images-idx3-ubyte"), read_idx(folder, "train-labels-idx1-ubyte")
    if images.shape[1:] != (28, 28):
        raise ValueError(f"images must be 28 x 28, got {images.shape[1]} x {images.shape[2]}")
    if len(images) != len(labels):
        raise ValueError(f"labels must be as many as images, {len(images)}, got {len(labels)}")
    if len(labels) == 0 or labels.max() > 9:
        raise ValueError(f"labels must be 0 to 9 and at least one, got {len(labels)}, maximum {labels.max(initial=0)}")
    return torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64))


def new_run(recipe: Recipe, device: str) -> Run:
    """Step 0 of a training: random weights, or for a phase space those of the packaged position network."""
    torch.manual_seed(recipe.seed)
    process = PROCESSES[recipe.process]
    net = UNet(process.config)
    if process.parts > 1:
        widen(mnist_unet(), net)
    ema = UNet(net.config)
    ema.load_state_dict(net.state_dict())
    for model in (net, ema):
        model.to(device).to(memory_format=torch.channels_last)
    ema.eval().requires_grad_(False)
    # one learning rate for all is set before each step
    return Run(net, ema, torch.optim.AdamW(net.parameters(), lr=_LR, betas=(0.9, 0.99), weight_decay=0.0))


def widen(position: UNet, net: UNet) -> None:
    """Put a position network's weights into one of position and momentum, whose own are zero at first."""
    with torch.no_grad():
        for (name, wide), narrow in zip(net.named_parameters(), position.parameters(), strict=True):
            if wide.shape == narrow.shape:
                wide.copy_(narrow)
            else:  # conv_in has one more input, conv_out one more output
                axis = 1 if name == "conv_in.weight" else 0
                wide.zero_().narrow(axis, 0, narrow.shape[axis]).copy_(narrow)


def learning_rate(step: int, total: int) -> float:
    """Linear over the first 200 steps, then half a cosine down to 2 % at the end."""
    done = min(1.0, step / max(1, total))
    cosine = _LAST_LR + (1 - _LAST_LR) * 0.5 * (1 + math.cos(math.pi * done))
    return _LR * min(1.0, (step + 1) / _WARM_UP) * cosine


def batch_at(step: int, images: Tensor, labels: Tensor, recipe: Recipe, null_class: int) -> tuple[Tensor, ...]:
    """x0, labels with a tenth replaced by `null_class`, times and noise of one step; all from (seed, step)."""
    process = PROCESSES[recipe.process]
    per_epoch = len(images) // recipe.batch
    epoch, i = divmod(step, per_epoch)
    order = torch.randperm(len(images), generator=_generator(recipe.seed, 0, epoch))
    chosen = order[i * recipe.batch : (i + 1) * recipe.batch]
    generator = _generator(recipe.seed, 1, step)
    x0 = images[chosen].float() / 127.5 - 1
    dropped = torch.rand(len(chosen), generator=generator) < _DROP
    y = torch.where(dropped, null_class, labels[chosen])
    t = process.draw_times(len(chosen), generator)
    return x0, y, t, torch.randn((len(x0), process.parts, *x0.shape[2:]), generator=generator)


def _generator(*key: int) -> torch.Generator:
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(seed)


def train_step(run: Run, batch: tuple[Tensor, ...], lr: float, process: Process) -> float:
    """One step on || target - net(z_t, t, y) ||^2 with the process's state at t; the loss.

    The target is eps (Ho et al. 2020, arXiv:2006.11239, eq. 14); on a flow eps - x0 (Lipman et al. 2023,
    arXiv:2210.02747, eq. 23 at sigma_min = 0, with time from data to noise); in phase space what is left of the score
    of hybrid score matching, whose noise holds the first momentum too (Pandey & Mandt 2023, arXiv:2303.01748).
    """
    device = next(run.net.parameters()).device
    x0, y, t, eps = (tensor.to(device) for tensor in batch)
    state, told, target = process.noised(x0, t, eps)
    with torch.autocast(device.type, torch.bfloat16):
        predicted = run.net(state.to(memory_format=torch.channels_last), told, y)
    loss = F.mse_loss(predicted.float()[:, : target.shape[1]], target)
    run.optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(run.net.parameters(), 1.0)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    with torch.no_grad():
        run.step += 1
        newest = (1 - _EMA) / (1 - _EMA**run.step)  # of weights that add up to 1: the initial ones have none
        for mean, parameter in zip(run.ema.parameters(), run.net.parameters(), strict=True):
            mean.lerp_(parameter, newest)
    return loss.item()


def save_checkpoint(path: Path, run: Run, recipe: Recipe) -> None:
    """Writes all that `load_checkpoint` needs, in one safetensors file that replaces the old one at once."""
    tensors = {}
    for name, parameter in run.net.named_parameters():
        tensors[f"net.{name}"] = parameter
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = run.optimizer.state[parameter][moment]
    tensors |= {f"ema.{name}": parameter for name, parameter in run.ema.named_parameters()}
    _save(path, tensors, {"step": str(run.step), "recipe": _recipe_json(recipe)})


def load_checkpoint(path: Path, run: Run, recipe: Recipe) -> None:
    """Puts the state of `path` into `run`.

    Raises:
        ValueError: the checkpoint is of another recipe.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("recipe") != _recipe_json(recipe):
            raise ValueError(f"{path}: recipe must be {_recipe_json(recipe)} to resume, got {metadata.get('recipe')}")
        run.step = int(metadata["step"])
        with torch.no_grad():
            for prefix, model in (("net", run.net), ("ema", run.ema)):
                for name, parameter in model.named_parameters():
                    parameter.copy_(file.get_tensor(f"{prefix}.{name}"))
        for name, parameter in run.net.named_parameters():
            state: dict[str, Tensor] = {"step": torch.tensor(float(run.step))}
            for moment in _MOMENTS:
                state[moment] = torch.empty_like(parameter).copy_(file.get_tensor(f"{moment}.{name}"))
            run.optimizer.state[parameter] = state


def save_weights(path: Path, net: UNet, card: Mapping[str, str]) -> None:
    """Writes float16 weights that `load_unet` reads, with the configuration and `card` in the metadata."""
    tensors = {name: tensor.half() for name, tensor in net.state_dict().items()}
    facts = {"config": json.dumps(net.config.to_dict()), "parameters": str(sum(t.numel() for t in tensors.values()))}
    _save(path, tensors, {**facts, **card})


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    with atomic_path(path) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)


def _recipe_json(recipe: Recipe) -> str:
    return json.dumps(vars(recipe), sort_keys=True)


def model_card(recipe: Recipe, steps: int, total: int) -> dict[str, str]:
    """What the metadata of the weights says about them."""
    process = PROCESSES[recipe.process]
    return {
        "title": f"Class-conditional MNIST U-Net, {process.title}",
        "dataset": "MNIST training set, 60,000 images of 28 x 28, scaled to [-1, 1]",
        "recipe": f"{process.recipe}; AdamW lr {_LR:g}, warm-up {_WARM_UP}, cosine to {_LAST_LR:.0%}, betas .9/.99, "
        f"gradient norm 1, batch {recipe.batch}, {steps} of {total} steps; labels dropped with probability {_DROP}; "
        f"EMA {_EMA}",
        "classes": "0-9 digits, 10 unconditional",
        "process": recipe.process,
    }


def train(
    run: Run, images: Tensor, labels: Tensor, recipe: Recipe, *, until: int | None = None
) -> Iterator[tuple[int, float]]:
    """Steps from `run.step` on; yields (steps done, loss) after each, up to `until` or the recipe's end."""
    total = total_steps(len(images), recipe)
    null_class = run.net.config.num_class_embeds - 1
    while run.step < min(total, total if until is None else until):
        batch = batch_at(run.step, images, labels, recipe, null_class)
        loss = train_step(run, batch, learning_rate(run.step, total), PROCESSES[recipe.process])
        yield run.step, loss


def total_steps(n_images: int, recipe: Recipe) -> int:
    """Steps of the whole recipe; the images that do not fill a last batch wait for another epoch's order."""
    if n_images < recipe.batch:
        raise ValueError(f"images must be at least one batch, {recipe.batch}, got {n_images}")
    return recipe.epochs * (n_images // recipe.batch)


@contextmanager
def _first_interrupt() -> Iterator[list[int]]:
    """Collects the first Ctrl-C instead of raising, so that no step is cut in two; the second one acts as ever."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, old)

    old = signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, old)


def _columns() -> tuple[Any, ...]:
    loss = TextColumn("loss {task.fields[loss]:.4f}")
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), loss


def main(
    data: Annotated[Path, typer.Option(help="folder with train-images-idx3-ubyte[.gz] and train-labels-idx1-ubyte")],
    out: Annotated[Path, typer.Option(help="folder for checkpoint.safetensors and, where it stops, the weights")],
    process: Annotated[str, typer.Option(help=f"one of {', '.join(PROCESSES)}")] = Recipe.process,
    epochs: Annotated[int, typer.Option(min=1)] = Recipe.epochs,
    batch: Annotated[int, typer.Option(min=1)] = Recipe.batch,
    seed: Annotated[int, typer.Option(min=0)] = Recipe.seed,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoint in --out")] = False,
    stop_after: Annotated[int | None, typer.Option(min=1, help="save and stop after this many steps")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="steps between checkpoints")] = 468,
) -> None:
    """Trains an MNIST U-Net. Ctrl-C saves a checkpoint and stops; --resume goes on from it."""
    recipe, checkpoint = Recipe(epochs, batch, seed, process), out / "checkpoint.safetensors"
    try:
        if process not in PROCESSES:
            raise ValueError(f"process must be one of {', '.join(PROCESSES)}, got {process!r}")
        images, labels = load_mnist(data)
        total = total_steps(len(images), recipe)
        run = new_run(recipe, device)
        if resume:
            load_checkpoint(checkpoint, run, recipe)
        elif checkpoint.exists():
            raise ValueError(f"{checkpoint} exists: give --resume to go on from it, or another --out")
    except (OSError, ValueError, SafetensorError) as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        raise typer.Exit(2) from error
    out.mkdir(parents=True, exist_ok=True)
    until = None if stop_after is None else run.step + stop_after
    with Progress(*_columns()) as progress, _first_interrupt() as interrupts:
        task = progress.add_task("training", total=total, completed=run.step, loss=math.nan)
        for step, loss in train(run, images, labels, recipe, until=until):
            progress.update(task, completed=step, loss=loss)
            if step % save_every == 0:
                save_checkpoint(checkpoint, run, recipe)
            if interrupts:
                break
    _finish(run, recipe, total, out)
    if interrupts:
        raise typer.Exit(130)


def _finish(run: Run, recipe: Recipe, total: int, out: Path) -> None:
    if run.step == 0:
        return
    weights = out / PROCESSES[recipe.process].file
    save_checkpoint(out / "checkpoint.safetensors", run, recipe)
    save_weights(weights, run.ema, model_card(recipe, run.step, total))
    more = f", step {run.step} of {total}; go on with --resume" if run.step < total else ""
    typer.echo(f"wrote {weights}{more}")


if __name__ == "__main__":
    typer.run(main)
