"""README's snippets and those of docs/ run as they stand, one after another, on a stand-in for the packaged network."""

import importlib.util
import inspect
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import pndm_fast as pf
from pndm_fast import demo

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
# at the margin: what stands in a list compiles a package, which tests/test_packages.py does
SNIPPETS = {page: re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S) for page in PAGES}
del SNIPPETS["docs/tune.md"]  # it wants a network of the reader's


class Tiny(nn.Module):
    """Called as the packaged networks are, in no time."""

    def __init__(self, channels):
        super().__init__()
        self.config = {"in_channels": channels, "sample_size": (28, 28)}
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.eval().requires_grad_(False)

    def forward(self, x, t, class_labels=None):
        shift = 0 if class_labels is None else class_labels.view(-1, 1, 1, 1) / 100
        return torch.tanh(self.conv(x)) + t.view(-1, 1, 1, 1) / 1000 + shift


@pytest.fixture(scope="module")
def page():
    """What the names of the page stand for after its last snippet; `pipe` is a pipeline around a tiny network."""
    names = {}
    lacking = ["prometheus_client"] if importlib.util.find_spec("prometheus_client") is None else []
    if all(map(importlib.util.find_spec, ("diffusers", "transformers"))):
        import tiny_pipelines

        names["pipe"] = tiny_pipelines.stable_diffusion.__wrapped__()[0]
    else:
        lacking.append("diffusers")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the grid starts")
        patch.setattr(demo, "mnist_unet", lambda: Tiny(1))
        patch.setattr(demo, "mnist_psld_unet", lambda: Tiny(2))
        for page, blocks in SNIPPETS.items():
            for block in blocks:
                if not any(package in block for package in lacking):
                    exec(compile(block, page, "exec"), names)
    return names


def test_every_snippet_runs(page):
    assert len(SNIPPETS["README.md"]) >= 6
    assert page["images"].shape == (4, 1, 28, 28) and page["result"].report.batch == 3
    assert page["drawn"].shape == (1, 1, 28, 28) and not page["asked"]
    assert page["z"].shape == (4, 2, 28, 28) and page["images"].isfinite().all()


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_links_lead_to_pages(page):
    """And to their sections, as GitHub names these."""
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", (ROOT / page).read_text()):
        file, _, section = link.partition("#")
        text = ((ROOT / page).parent / file if file else ROOT / page).read_text()
        headings = [
            re.sub(r"[^\w\- ]", "", line).lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)", text, re.M)
        ]
        assert not section or section in headings


def test_the_packaged_networks_are_called_so():
    assert list(inspect.signature(demo.UNet.forward).parameters) == list(inspect.signature(Tiny.forward).parameters)


@pytest.mark.filterwarnings("ignore:the grid starts")
@pytest.mark.parametrize("solver", ["dpmpp-2m", "f-pndm", "unipc", "heun"])
def test_gradients_of_a_trajectory(page, solver):
    """docs/gradients.md's loop: `sample`'s samples, and the gradients of finite differences."""
    plan = pf.make_plan(solver, steps=5, spacing="trailing", clip=3.0)
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def samples(noise, weight):
        return page["trajectory"](lambda x, t: torch.tanh(weight * x + t[:, None] / 1000), plan, noise)

    drawn = pf.sample(lambda x, t: torch.tanh(0.7 * x + t[:, None] / 1000), solver=plan, start=pf.Noise(noise.detach()))
    torch.testing.assert_close(samples(noise, weight).detach(), drawn, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(samples, (noise, weight))
