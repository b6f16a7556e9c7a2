"""Images made again by the recipe they carry."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from test_cli import TOY, run

import pndm_fast as pf
from pndm_fast.cli import images
from pndm_fast.cli.recipes import FORMAT, RULES

pytest.importorskip("PIL")

ROUNDED = '''
import torch

class Rounded(torch.nn.Module):
    """One output depends on the size of the batch, and on its place there, as a network's rounding may."""
    config = {"in_channels": 1, "sample_size": (4, 4), "num_class_embeds": 11}
    prediction = "v"

    def forward(self, x, t, class_labels=None):
        place = torch.arange(len(x), device=x.device)[:, None, None, None]
        return torch.tanh(x + place / 7 + len(x) / 11)

def rounded():
    return Rounded()

def own():
    import pndm_fast as pf
    net = Rounded()
    net.schedule = pf.Schedule.from_betas([0.02 + i / 500 for i in range(100)])
    return net
'''


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder with two models' modules beside it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "toy_net.py").write_text(TOY)
    (tmp_path / "rounded_net.py").write_text(ROUNDED)
    yield tmp_path
    for name in ("toy_net", "rounded_net"):
        sys.modules.pop(name, None)


def done(*words, code=0):
    result = run(*words)
    assert result.exit_code == code, result.output
    return result


def sample(*words, model="toy_net:toy", code=0):
    base = ("sample", "--model", model, "--trust", "--device", "cpu", "--backend", "reference")
    return done(*base, *words, code=code)


def replay(*words, code=0):
    return done("replay", "--trust", "--device", "cpu", "--backend", "reference", *words, code=code)


CASES = {
    "sheet": ("-n", 3, "--solver", "ipndm", "--steps", 4),
    "batches": ("-n", 5, "--batch", 2, "--solver", "ipndm", "--steps", 4, "--model", "rounded_net:rounded"),
    "stochastic": ("-n", 2, "--solver", "ddim", "--steps", 5, "--option", "eta=0.7", "--seed", 2**63),
    "guided": ("-n", 4, "--class", "3,8", "--guidance", 2, "--null-class", 10, "--solver", "ddim", "--steps", 4),
    "calls": ("-n", 1, "--nfe", 16, "--solver", "f-pndm", "--spacing", "trailing", "--option", "clip=0.9"),
    "auto": ("-n", 1, "--nfe", 15, "--solver", "auto"),
    "part": ("-n", 1, "--steps", 20, "--solver", "euler", "--option", "t_start=950"),
    "sigmas": ("-n", 1, "--solver", "heun", "--option", "sigmas=[80, 5, 0.5, 0]", "--schedule", "edm"),
    "times": ("-n", 1, "--solver", "ddim", "--option", "times=[999, 400.5, -1]", "--option", "integer_times=true"),
    "another prediction": ("-n", 2, "--solver", "ddim", "--steps", 4, "--schedule", "flow", "--prediction", "flow"),
    "no class, a shape": ("-n", 2, "--class", "none", "--solver", "lms", "--steps", 5, "--shape", "3,4,6"),
    "its own schedule": ("-n", 2, "--solver", "ddim", "--spacing", "trailing", "--model", "rounded_net:own"),
    "another dtype": ("-n", 2, "--solver", "ddim", "--steps", 4, "--dtype", "bf16"),
}


@pytest.mark.filterwarnings("ignore:the grid starts")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("suffix", ["png", "npz"])
def test_an_image_is_made_again(case, suffix, place):
    """The same file, byte for byte: pixels, and the recipe."""
    sample(*CASES[case], "--out", f"a.{suffix}")
    told = replay(f"a.{suffix}").stdout
    assert told == f"a-replay.{suffix}: the same pixels as a.{suffix}\n"
    assert images.read_recipe(f"a-replay.{suffix}") == images.read_recipe(f"a.{suffix}")
    assert np.array_equal(images.read_pixels(f"a-replay.{suffix}"), images.read_pixels(f"a.{suffix}"))
    replay(f"a-replay.{suffix}", "--out", f"b.{suffix}")
    assert np.array_equal(images.read_pixels(f"b.{suffix}"), images.read_pixels(f"a.{suffix}"))


def test_a_models_own_facts_are_the_defaults(place):
    sample(*CASES["its own schedule"], "--out", "a.npz")
    recipe = images.read_recipe("a.npz")
    assert (recipe["schedule"], recipe["prediction"]) == ("model", "v")
    sample(*CASES["its own schedule"], "--schedule", "model", "--prediction", "v", "--out", "b.npz")
    assert images.read_recipe("b.npz") == recipe
    for words in (("--schedule", "linear"), ("--prediction", "eps")):
        assert "the network's own" in sample(*CASES["its own schedule"], *words, "--out", "c.npz", code=2).stderr


def test_pictures_of_a_folder_are_drawn_at_their_places(place):
    """Few calls of the network: pictures that have their recipe in common share batches."""
    sample(*CASES["batches"], "-n", 7, "--batch", 3, "--seed", 5, "--out", "made")
    names = [f"made/{seed:06d}.png" for seed in (11, 6, 5, 8)]
    told = json.loads(replay(*names, "--out", "again", "--json").stdout)
    assert [one["differing"] for one in told["replays"]] == [0, 0, 0, 0] and not told["interrupted"]
    assert sorted(p.name for p in (place / "again").iterdir()) == sorted(name[5:] for name in names)
    for name in names:
        assert images.read_recipe(f"again/{name[5:]}") == images.read_recipe(name)
        assert np.array_equal(images.read_pixels(f"again/{name[5:]}"), images.read_pixels(name))
    assert images.read_recipe(names[0])["batch"] == 1 and images.read_recipe(names[1])["place"] == 1


def test_a_resumed_folder_has_the_same_bytes(place):
    words = (*CASES["batches"], "-n", 7, "--batch", 3, "--out", "made")
    sample(*words)
    before = {p.name: p.read_bytes() for p in (place / "made").iterdir()}
    for seed in (1, 2, 6):
        (place / f"made/{seed:06d}.png").unlink()
    assert json.loads(sample(*words, "--json").stdout)["images"] == 3
    assert {p.name: p.read_bytes() for p in (place / "made").iterdir()} == before


def test_several_kinds_at_once(place):
    sample(*CASES["sheet"], "--out", "a.PNG")
    sample(*CASES["guided"], "--out", "b.npz")
    sample(*CASES["sheet"], "--out", "made/")
    told = replay("a.PNG", "b.npz", "made/000001.png", "--out", "again/").stdout.splitlines()
    assert [line.split(": ")[1] for line in told] == [
        "the same pixels as a.PNG",
        "the same pixels as b.npz",
        "the same pixels as made/000001.png",
    ]
    assert replay("a.PNG", "--out", "as_array.NPZ").stdout == "as_array.NPZ: made again from a.PNG\n"
    assert len(np.load("as_array.NPZ")["arr_0"]) == 3


def test_marked_pictures_stay_black(place):
    words = ("-n", 6, "--shape", "1,4,4", "--on-nan", "mark", "--steps", 4, "--solver", "ddim", "--out", "a.npz")
    sample(*words, model="toy_net:nan")
    assert "the same pixels" in replay("a.npz").stdout


@pytest.mark.slow
def test_the_packaged_model_is_replayed(place):
    done("sample", "-n", 3, "--batch", 2, "--steps", 4, "--solver", "ipndm", "--device", "cpu", "--out", "a.png")
    told = done("replay", "a.png", "--device", "cpu", "--quiet", "--json").stdout
    assert json.loads(told)["replays"][0]["differing"] == 0


def changed(name, **entries):
    """The image with a recipe that says something else; None takes an entry out."""
    recipe = {**images.read_recipe(name), **entries}
    pixels = images.read_pixels(name)
    recipe = {key: value for key, value in recipe.items() if value != "absent"}
    images.save_png("changed.png", pixels[..., None] if pixels.ndim == 2 else pixels, recipe)
    return "changed.png"


def test_what_differs_is_told(place):
    sample(*CASES["sheet"], "--out", "a.png")
    name = changed("a.png", seed=1, version="0.0.1")
    result = replay(name, "--out", "b.png")
    assert "bytes differ from changed.png, by" in result.stdout and "made by pndm_fast 0.0.1; this is" in result.stderr
    assert json.loads(replay(name, "--out", "b.png", "--force", "--json").stdout)["replays"][0]["differing"] > 0


REFUSED = {
    "no recipe": (None, "must carry a recipe"),
    "newer": ({"format": FORMAT + 1, "version": "9.9"}, f"must have format {FORMAT}, got 2, by pndm_fast 9.9: a newer"),
    "older": ({"format": "absent"}, f"must have format {FORMAT}, got none, by pndm_fast {pf.__version__}"),
    "no format": ({"format": "one"}, "must be an object with a format"),
    "unknown entry": ({"secret": 1}, "must have known entries, got 'secret'"),
    "solver": ({"solver": "f-pmdm"}, "did you mean 'f-pndm'"),
    "option": ({"options": {"ordr": 1}}, "'ordr' is neither"),
    "option that is a flag": ({"options": {"prediction": "v"}}, "--prediction"),
    "schedule": ({"schedule": "quadratic"}, "schedule must be one of"),
    "own schedule": ({"schedule": "model"}, "schedule must be"),
    "dtype": ({"dtype": "fp8"}, "dtype must be one of"),
    "model": ({"model": "os:getcwd"}, "must make something callable"),
    "model that is no name": ({"model": "a b"}, "--model must be"),
    "label": ({"class": [11, 0, 1]}, "--class must be in [0, 10]"),
    "labels": ({"class": [0]}, "must be 3 labels, got 1"),
    "one label": ({"class": 4}, "must be labels or null"),
    "number and place": ({"place": 0}, "'number' or 'place'"),
    "guidance": ({"guidance": float("nan")}, "guidance must be finite"),
    **{f"no {key}": ({key: "absent"}, f"must have '{key}'") for key in ("solver", "grid", "seed", "batch", "class")},
    **{
        f"bad {key}": ({key: [None]}, f"{key} in the recipe of changed.png must be {RULES[key][0]}")
        for key in RULES
        if key != "options"
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case, place, monkeypatch):
    """One line, code 2, nothing sampled and nothing written."""
    sample(*CASES["sheet"], "--out", "a.png")
    entries, message = REFUSED[case]
    if entries is None:
        images.save_png("changed.png", np.zeros((4, 4, 1), np.uint8))
    else:
        changed("a.png", **entries)
    monkeypatch.setattr(pf.Sampler, "run", lambda *args, **kwargs: pytest.fail("sampled"))
    result = replay("changed.png", code=2)
    assert message in result.stderr and result.stderr.count("\n") == 1 and result.stdout == ""
    assert not (place / "changed-replay.png").exists()


def test_no_pillow(place, monkeypatch):
    sample(*CASES["sheet"], "--out", "a.npz")
    sample(*CASES["sheet"], "--out", "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install 'pndm_fast[images]'" in replay("a.png", code=2).stderr
    assert "the same pixels" in replay("a.npz").stdout
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert "--out must be .npz without Pillow" in replay("a.npz", "--out", "b.png", code=2).stderr


def test_places_and_trust(place):
    sample(*CASES["sheet"], "--out", "a.png")
    (place / "text.png").write_text("no picture")
    (place / "text.npz").write_text("no array")
    (place / "taken.png").write_text("precious")
    whole = (place / "a.png").read_bytes()
    (place / "cut.png").write_bytes(whole[: whole.index(b"IDAT") + 8])  # its recipe stands before its pixels
    np.savez("empty.npz", recipe=json.dumps(images.read_recipe("a.png")))
    (place / "other").mkdir()
    (place / "other/a.png").write_bytes((place / "a.png").read_bytes())
    for words, message in [
        (("absent.png",), "absent.png: No such file"),
        (("text.png",), "must be a PNG or NPZ file that can be read, got text.png"),
        (("text.npz",), "must be a PNG or NPZ file that can be read, got text.npz"),
        (("other",), "must be a PNG or NPZ file"),
        (("cut.png",), "must be a PNG or NPZ file that can be read, got cut.png"),
        (("empty.npz",), "must be a PNG or NPZ file that can be read, got empty.npz"),
        (("a.png", "--out", "taken.png"), "--force"),
        (("a.png", "other/a.png", "--out", "b.png"), "--out must be a folder for 2 images"),
        (("a.png", "other/a.png", "--out", "made"), "--out must hold each image once"),
        (("a.png", "--out", "b.jpg"), "--out must end in .png or .npz"),
        (("a.png", "--out", "absent/b.png"), "--out must be in a folder"),
        ((), "'image'"),
    ]:
        result = replay(*words, code=2)
        assert message in result.stderr and result.stderr.count("\n") == 1, words
    result = done("replay", "a.png", code=2)
    assert "--trust" in result.stderr and (place / "taken.png").read_text() == "precious"
    replay("a.png", "--out", "taken.png", "--force")
    assert images.read_recipe("taken.png") == images.read_recipe("a.png")


def test_a_plans_file(place):
    """It gives the words' bytes, and is in the picture whole: a replay does not need the file."""
    pf.make_plan("dpmpp-2m", nfe=5, spacing="karras").save(place / "own.json")
    sample("--solver", "dpmpp-2m", "--nfe", 5, "--spacing", "karras", "--out", "words.npz")
    sample("--solver", "own.json", "--out", "file.npz")
    for name in ("sheet.png", "folder"):
        sample("--solver", "own.json", "--out", name)
    (place / "own.json").unlink()
    np.testing.assert_array_equal(images.read_pixels(place / "file.npz"), images.read_pixels(place / "words.npz"))
    pictures = sorted(map(str, (place / "folder").glob("*.png")))
    replay("file.npz", "sheet.png", *pictures, "--out", "again")
    for name in ("file.npz", "sheet.png", *pictures):
        made = place / "again" / name.rpartition("/")[2]
        np.testing.assert_array_equal(images.read_pixels(made), images.read_pixels(place / name))
    assert images.read_recipe(place / "sheet.png")["plan"]["solver"] == "dpmpp-2m"


def test_a_guided_plans_file(place):
    """Its rows keep their own scales: those outside an interval are not guided."""
    plan = pf.make_plan("ddim", nfe=5).with_guidance(2.0, (0.5, 5.0))
    plan.save(place / "own.json")
    assert {row.guidance for row in plan} == {1.0, 2.0}
    words = ("-n", 1, "--class", 3, "--guidance", 2, "--null-class", 10)
    sample("--solver", "own.json", *words, "--out", "a.npz")
    sample("--solver", "ddim", "--nfe", 5, *words, "--out", "everywhere.npz")
    replay("a.npz", "--out", "again.npz")
    import toy_net

    labels = {"class_labels": torch.tensor([3])}, {"class_labels": torch.tensor([10])}
    sampler = pf.Sampler(toy_net.toy().eval(), plan, shape=(1, 1, 4, 4))
    wanted = images.to_uint8(sampler(seeds=[0], cond=labels[0], uncond=labels[1]))
    made = images.read_pixels(place / "a.npz")
    np.testing.assert_array_equal(made.reshape(wanted.shape), wanted)
    np.testing.assert_array_equal(made, images.read_pixels(place / "again.npz"))
    assert (made != images.read_pixels(place / "everywhere.npz")).any()


def test_a_folder_of_another_plans_file_is_refused(place):
    """Resuming compares the plan itself, not its file's name."""
    pf.make_plan("ddim", nfe=5).save(place / "own.json")
    sample("--solver", "own.json", "--out", "folder", "-n", 2)
    sample("--solver", "own.json", "--out", "folder", "-n", 4)
    pf.make_plan("ddim", nfe=5, spacing="karras").save(place / "own.json")
    sample("--solver", "own.json", "--out", "folder", "-n", 4, code=2)


@pytest.mark.parametrize(
    "words, said",
    [
        (("--solver", "absent.json"), "--solver must be a plan's file that can be read, got 'absent.json'"),
        (("--solver", "text.json"), "text.json is not JSON"),
        (("--solver", "other.json"), "a plan file must be a JSON object"),
        (("--solver", "own.json", "--nfe", 5), "--nfe cannot go with a plan's file"),
        (("--solver", "own.json", "--steps", 0), "--steps cannot go with a plan's file"),
        (("--solver", "own.json", "--spacing", "karras"), "--spacing cannot go with a plan's file"),
        (("--solver", "own.json", "--schedule", "linear"), "--schedule cannot go with a plan's file"),
        (("--solver", "own.json", "--option", "eta=1"), "--option cannot go with a plan's file"),
        (("--solver", "own.json", "--prediction", "v"), "prediction must be the plan's own, 'eps', got 'v'"),
        (("--solver", "guided.json"), "--guidance must be the plan's own, [2.0], got 1"),
        (("--solver", "guided.json", "--guidance", 3), "--guidance must be the plan's own, [2.0], got 3"),
    ],
)
def test_a_plans_file_that_cannot_be(place, words, said):
    pf.make_plan("ddim", nfe=5).save(place / "own.json")
    pf.make_plan("ddim", nfe=5).with_guidance(2.0).save(place / "guided.json")
    (place / "text.json").write_text("plan")
    (place / "other.json").write_text("[]")
    result = sample(*words, "--out", "a.png", code=2)
    assert said in result.stderr and not (place / "a.png").exists()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"grid": {"nfe": 5}}, "must have 'grid' or a plan, one of them"),
        ({"plan": {"format": "pndm_fast.plan.1", "rows": 3}}, "rows must be a list, got int"),
        ({"plan": "own.json"}, "must be a plan, got 'own.json'"),
        ({"prediction": "v"}, "prediction must be the plan's own"),
    ],
)
def test_a_carried_plan_is_not_believed(place, change, said):
    pf.make_plan("ddim", nfe=5).save(place / "own.json")
    sample("--solver", "own.json", "--out", "a.npz")
    with np.load(place / "a.npz") as kept:
        arrays = dict(kept)
    recipe = images.read_recipe(place / "a.npz")
    for key, value in arrays.items():
        if value.dtype.kind == "U":
            arrays[key] = np.array(json.dumps({**recipe, **change}))
    np.savez(place / "a.npz", **arrays)
    assert said in replay("a.npz", code=2).stderr
