"""The networks that `--model` names: the demonstration's, or what a factory of your own makes."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pndm_fast import demo
from pndm_fast.cli.errors import JobError, UsageError, told
from pndm_fast.cli.words import DEMO, DEMO_FLOW, DEMO_PSLD
from pndm_fast.loop.config_shape import sample_shape
from pndm_fast.plan.checks import choose

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DEMOS = {DEMO: demo.mnist_unet, DEMO_PSLD: demo.mnist_psld_unet, DEMO_FLOW: demo.mnist_flow_unet}


@dataclass(frozen=True)
class ModelArgs:
    """Which network, and how to run it."""

    name: str = DEMO
    trust: bool = False
    shape: tuple[int, ...] | None = None
    null_class: int | None = None
    device: torch.device = torch.device("cpu")
    dtype: str = "fp32"
    backend: str = "auto"
    graph: str = "auto"


@dataclass(frozen=True)
class Model:
    """A network and what it takes.

    Attributes:
        shape: of one sample.
        classes: labels are 0 ... classes - 1; None where that is not known.
        null: the label that means none, for guidance.
        default: the classes where none are asked for.
    """

    net: Callable[..., Any]
    shape: tuple[int, ...]
    classes: int | None = None
    null: int | None = None
    default: tuple[int, ...] = ()


def load_model(args: ModelArgs) -> Model:
    """The network, on its device and in its dtype.

    Raises:
        ValueError: another dtype.
        UsageError: no such model, or one that may not be imported.
        JobError: its factory failed.
    """
    dtype = DTYPES[choose("dtype", args.dtype, DTYPES)]
    if args.name in DEMOS:
        if args.shape is not None or args.null_class is not None:
            raise UsageError(f"--shape and --null-class must not be given for {args.name}, which has its own")
        unet, none = DEMOS[args.name](dtype, args.device), demo.null_class  # labels: the digits, then "none"
        shape = unet.config.in_channels, unet.config.sample_size, unet.config.sample_size
        return Model(unet, shape, none, none, tuple(range(none)))
    module, _, factory = args.name.partition(":")
    if module == "demo" or not all(part.isidentifier() for part in (*module.split("."), factory)):
        raise UsageError(f"--model must be {', '.join(DEMOS)} or package.module:factory, got {args.name!r}")
    if not args.trust:
        raise UsageError(f"--model {args.name} runs that module's code: it must be allowed by --trust")
    net = _made(args.name, module, factory)
    if isinstance(net, nn.Module):
        net = net.to(device=args.device, dtype=dtype).eval().requires_grad_(False)
    try:
        found = args.shape or sample_shape(net)
    except ValueError as error:
        raise UsageError(f"--shape must be given for {args.name}: {str(error).partition(': ')[2]}") from error
    config = getattr(net, "config", None)
    embeds = (
        config.get("num_class_embeds") if isinstance(config, Mapping) else getattr(config, "num_class_embeds", None)
    )
    return Model(net, found, embeds if isinstance(embeds, int) else None, args.null_class)


def _made(name: str, module: str, factory: str) -> Callable[..., Any]:
    sys.path.append(os.getcwd())  # a console script does not look there; last, so that it hides no installed package
    try:
        make = getattr(importlib.import_module(module), factory)
    except Exception as error:
        raise UsageError(f"--model {name} must be importable: {told(error)}") from error
    if not callable(make):
        raise UsageError(f"--model {name} must be a factory, got {type(make).__name__}")
    try:
        net: Callable[..., Any] = make()
    except Exception as error:
        raise JobError(f"the factory of --model {name} failed: {told(error)}") from error
    if not callable(net):
        raise UsageError(f"--model {name} must make something callable as model(x, t), got {type(net).__name__}")
    return net


def find_device(text: str) -> torch.device:
    """The device of that name; auto is the first GPU, or the CPU where there is none.

    Raises:
        UsageError: another word, or a GPU that is not there.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N, got {text!r}")
    device = torch.device(text)
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise UsageError(f"--device must be one that PyTorch finds, got {text!r} where it finds {count} CUDA devices")
    return device
