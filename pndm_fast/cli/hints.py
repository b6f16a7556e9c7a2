"""Words of other programs, and what they are called here."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import fields

from pndm_fast.cli.words import FLAGS
from pndm_fast.solvers import SOLVERS
from pndm_fast.solvers.grid import GridSpec

_OPTIONS = {
    "--steps": "num-inference-steps inference-steps num-steps n-steps ddim-steps sampling-steps timesteps s",
    "--guidance": "guidance-scale cfg cfg-scale scale w g",
    "--solver": "sampler scheduler sampler-name sample-method method",
    "--number": "n num-images num-samples n-samples n-iter count samples num-images-per-prompt",
    "--class": "label labels class-label class-labels classes y",
    "--out": "output output-dir outdir out-dir output-file save o",
    "--batch": "batch-size bs b",
    "--prediction": "prediction-type parameterization objective",
    "--schedule": "beta-schedule noise-schedule",
    "--spacing": "timestep-spacing grid sigma-schedule",
    "--dtype": "precision torch-dtype half fp16 bf16",
    "--model": "ckpt checkpoint weights model-id pretrained m",
    "--seed": "seeds manual-seed random-seed",
    "--device": "cpu cuda gpu",
    "--shape": "width height size image-size resolution",
    "--null-class": "uncond negative-class negative-label",
    "--class, for pictures are drawn by labels": "prompt negative-prompt p",
    "--force": "overwrite f yes",
    "--quiet": "silent q",
}
OPTIONS = {word: name for name, words in _OPTIONS.items() for word in words.split()}
_COMMANDS = {
    "sample": "generate draw run create txt2img make",
    "solvers": "list samplers schedulers ls",
    "plan": "show print table schedule",
    "replay": "rerun reproduce repeat redo verify",
    "--help": "help",
    "--version": "version",
}
COMMANDS = {word: name for name, words in _COMMANDS.items() for word in words.split()}


def for_option(option: str, command: str, known: Collection[str]) -> str:
    """A hint for an option that is none of those known to a command, or nothing."""
    word = option.lstrip("-").partition("=")[0].lower().replace("_", "-")
    if word in FLAGS:
        home = f"{'plan' if word == 'compat' else 'sample'} --{word}"
        return f"; did you mean {f'plan {word.upper()}' if command == 'plan' else home}?"
    if word in OPTIONS:
        there = OPTIONS[word].partition(",")[0] in known
        return f"; did you mean {'' if there else 'sample '}{OPTIONS[word]}?"
    name = word.replace("-", "_")
    if name in _solver_words() and "--option" in known:
        return f"; did you mean --option {name}=...?"
    return ""


def _solver_words() -> set[str]:
    """What `--option` takes: the solvers' own keywords, and the grid's."""
    own = {name for function in SOLVERS.values() for name in inspect.signature(function).parameters}
    return own | {field.name for field in fields(GridSpec)} | {"clip"}


def for_word(message: str) -> str:
    """A hint for a word that is no command, or that has no place, as it stands in typer's message."""
    for word in message.replace("(", "'").replace(")", "'").split("'")[1::2]:
        if word in COMMANDS:
            return f"; did you mean {COMMANDS[word]}?"
        if word.lower().endswith((".png", ".npz")):
            return f"; did you mean --out {word}, or replay {word}?"
    return ""
