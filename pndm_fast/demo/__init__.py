"""Models for examples and tests: trained MNIST U-Nets and a Gaussian mixture whose eps is known exactly."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from pndm_fast.demo.mixture import GaussianMixture, gaussian_mixture
from pndm_fast.demo.tuned import plans_of, tuned
from pndm_fast.demo.unet import PROCESSES, UNet, UNetConfig, flow, psld
from pndm_fast.plan.checks import choose

__all__ = [
    "GaussianMixture",
    "UNet",
    "UNetConfig",
    "flow",
    "gaussian_mixture",
    "load_unet",
    "mnist_flow_unet",
    "mnist_psld_unet",
    "mnist_unet",
    "null_class",
    "plans_of",
    "psld",
    "tuned",
]

null_class = 10  # the label of the packaged network that means "no label"; 0 to 9 are the digits


def load_unet(path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> UNet:
    """The network of a safetensors file with "config" in its metadata, frozen and in evaluation mode.

    With "process" there too it knows its `schedule` and `prediction`, see `UNet`.

    Raises:
        ValueError: no "config", or one that the network does not have, or an unknown process.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if "config" not in metadata:
            raise ValueError(f"{path}: the metadata must have the key 'config', got {sorted(metadata)}")
        config = UNetConfig.from_dict(json.loads(metadata["config"]))
        process = choose("process", metadata["process"], PROCESSES) if "process" in metadata else None
        state = {key: file.get_tensor(key).to(device, dtype) for key in file.keys()}
    with torch.device("meta"):  # no random initialization of what is replaced at once
        net = UNet(config)
    net.load_state_dict(state, assign=True)
    net.process = process
    return net.eval().requires_grad_(False)


def mnist_unet(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> UNet:
    """The packaged class-conditional MNIST network, 2.74 M parameters; `README.md` beside it is its card.

    It carries the plans of few calls that were fitted to it, which `tuned` gives by name and `solver="auto"` takes.
    """
    return _packaged("mnist.safetensors", "vp", dtype, device)


def mnist_psld_unet(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> UNet:
    """The packaged MNIST network of position and momentum, two channels, for plans on `psld`."""
    return _packaged("mnist_psld.safetensors", "psld", dtype, device)


def mnist_flow_unet(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> UNet:
    """The packaged MNIST network of a flow-matching process, 0.69 M parameters, for plans on `flow`."""
    return _packaged("mnist_flow.safetensors", "flow", dtype, device)


def _packaged(name: str, process: str, dtype: torch.dtype, device: torch.device | str) -> UNet:
    net = load_unet(Path(__file__).parent / name, dtype, device)
    net.process = process  # these files say so in words alone
    if dtype == torch.float32 and torch.device(device).type == "cpu":
        # 10 to 25 % faster at batch 1 to 64 on two EPYC cores; bfloat16 is 15 to 40 % slower so
        net = net.to(memory_format=torch.channels_last)
    return net
