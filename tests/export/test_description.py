"""What is said of a network: every spelling that means something is taken, the rest is refused by name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from equipoise_core.contract import Contract, ContractError
from equipoise_export import command, inspect
from equipoise_export.draft import Description
from equipoise_export.errors import ExportError, SpecError
from equipoise_export.options import Answers, Options, Sizes
from torch import nn
from typer.testing import CliRunner

PLANE = {"name": "m", "task": "segmentation", "shape": (1, 8, 8), "classes": ("background", "lesion")}
SOLID = {**PLANE, "shape": (1, 8, 8, 8)}


def made(**more: Any) -> Contract:
    return Description.read({**PLANE, **more}).contract(Sizes.AUTO)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({**SOLID, "orientation": "RAX"}, "orientation is 'RAX'; expected 3 letters"),
        ({**SOLID, "orientation": "RRR"}, "orientation is 'RRR'"),
        ({**SOLID, "orientation": "RLS"}, "orientation is 'RLS'"),
        ({**SOLID, "orientation": "RA"}, "orientation is 'RA'"),
        ({"spacing": "1.2:0.8,1"}, "above 0; got 1.2:0.8"),
        ({"spacing": "-1,1"}, "above 0; got -1.0"),
        ({"spacing": "nan,1"}, "above 0; got nan"),
        ({"spacing": "inf,1"}, "above 0; got inf"),
        ({"spacing": 1.0}, "expected for each axis a number or"),
        ({"spacing": [(1, 2, 3), 1]}, "expected for each axis a number or"),
        ({"spacing": "wide"}, "--spacing wide"),
        ({"classes": ("fg", "fg")}, "each class has a name of its own; got 'fg', 'fg'"),
        ({"classes": ("background", "Background ")}, "each class has a name of its own"),
        ({"classes": ("background", " ")}, "each class has a name of its own"),
        ({"classes": ("background", "total")}, "cannot be called `total`"),
        ({"classes": "fg"}, "classes is 'fg'; expected a list of names"),
        ({"classes": 2}, "expected a list of names"),
        ({"maximum": (8, 4)}, "--maximum 8,4: expected 2 sizes, none below those of --input-shape 1,8,8"),
        ({"maximum": 64}, "--maximum 64: expected 2 sizes"),
        ({"maximum": "large"}, "expected a list of whole numbers"),
        ({"samples": -5}, "--samples -5"),
        ({"samples": 0}, "--samples 0"),
        ({"samples": "many"}, "samples is 'many'; expected a whole number"),
        ({"multiple": 0}, "--multiple 0"),
        ({"multiple": 2.5}, "multiple is 2.5; expected a whole number"),
        ({"slices": 0}, "--slices 0"),
        ({"preprocess": 5}, "preprocess is 5"),
    ],
    ids=str,
)
def test_what_means_nothing_is_refused_by_name(stated, words):
    """Before anything is traced."""
    with pytest.raises(SpecError, match=words):
        Description.read({**PLANE, **stated}).over(Description(samples=7)).contract(Sizes.AUTO)


def test_what_is_spelled_otherwise_is_taken():
    """Lower case for DICOM's codes and for axes; numbers, pairs or text; text for numbers."""
    contract = made(modalities=["mr "], views=["pa"], lateralities=["l"], body_parts=["chest"], multiple="8",
                    spacing=(1.0, (0.5, 2)), maximum=np.array([16, 24]))  # fmt: skip
    assert (contract.modalities, contract.subject.views, contract.subject.lateralities) == (("MR",), ("PA",), ("L",))
    assert contract.subject.body_parts == ("CHEST",)
    assert (contract.spacing, contract.maximum) == (((1.0, 1.0), (0.5, 2.0)), (16, 24))
    assert made(spacing="0.8:1.2, 1").spacing == ((0.8, 1.2), (1.0, 1.0))
    assert made(**{**SOLID, "orientation": "lps"}).orientation == "LPS"
    assert made(ages=[1, 5]).subject.ages == (1.0, 5.0)


def test_what_a_bundle_states_is_taken_only_where_nothing_is_said():
    bundle = Description(samples=7, multiple=16, fill=-1.0, orientation="RAS", states_moments=True)
    assert Description(samples=0, multiple=0).over(bundle).samples == 0
    assert Description(samples=0, multiple=0).over(bundle).multiple == 0
    assert Description().over(bundle).fill == -1.0
    assert Description().over(bundle).orientation == "RAS"


def test_options_take_text_and_lists():
    """`sizes="fixed"` was compared by identity, and meant nothing."""
    options = Options(sizes="fixed", answers="probabilities", sites=["decoder.*", "!*.pos"])
    assert options.sizes is Sizes.FIXED and options.answers is Answers.PROBABILITIES
    assert options.sites == "decoder.*,!*.pos"


@pytest.mark.parametrize(
    "wrong",
    [{"sizes": "any"}, {"answers": 3}, {"sites": 5}, {"sites": [1]}, {"p": "0.2"}, {"min_depth": True}, {"margin": 1.5},
     {"margin": -1}, {"bind": [1]}],
    ids=str,
)  # fmt: skip
def test_options_that_mean_nothing_are_refused_by_name(wrong):
    with pytest.raises(SpecError, match=next(iter(wrong))):
        Options(**wrong)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 1), nn.Dropout2d(0.2), nn.Conv2d(8, 2, 1))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"example": "x.npy"}, "the example is a str; expected an array of images"),
        ({"example": [None]}, "the example is a list"),
        ({"weights": "nope.pt"}, "there is no file nope.pt"),
    ],
    ids=str,
)
def test_what_python_gives_is_refused_as_documented(more, words):
    stated = {**PLANE, "shape": None} if "example" in more else PLANE
    with pytest.raises(ExportError, match=words):
        inspect(network(), **{**{k: v for k, v in stated.items() if v is not None}, **more})


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.zeros(1, 1, 8, 8), "nothing else was stated$"),
        (255 * torch.rand(2, 1, 8, 8), "nothing else was stated; but the example, of mean"),
    ],
    ids=["blank", "grey values"],
)
def test_intensities_of_which_nothing_is_said_are_noted(example, words):
    """z-scores are a guess. What is stated has no note."""
    given = {name: value for name, value in PLANE.items() if name != "shape"}
    (note,) = inspect(network(), example=example, **given).notes
    assert re.search(words, note)
    assert inspect(network(), example=example, preprocess="zscore", **given).notes == ()


def test_messages_are_shown_as_they_are(tmp_path):
    """Brackets are no markup; what is inspected is printed whole."""
    shown = CliRunner().invoke(command.app, ["nets.py:unet[/b]", "--name", "a[/b]", "--inspect"])
    assert shown.exit_code == 1 and "Traceback" not in shown.output
    assert "--task" in shown.output
    (tmp_path / "nets.py").write_text("class Missing: pass\n")
    shown = CliRunner().invoke(
        command.app,
        [f"{tmp_path}/nets.py:unet[a]", "--name", "a", "--task", "segmentation", "--input-shape", "1,8,8", "--classes",
         "background,lesion", "--inspect"],
    )  # fmt: skip
    assert "unet[a]" in shown.output


def test_inspect_prints_name_and_notes_as_json(tmp_path):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n"
        "def unet(): return nn.Sequential(nn.Conv2d(1, 8, 1), nn.Dropout2d(0.2), nn.Conv2d(8, 2, 1))\n"
    )
    shown = CliRunner().invoke(
        command.app,
        [f"{tmp_path}/nets.py:unet", "--name", "m", "--task", "segmentation", "--input-shape", "1,8,8", "--classes",
         "background,lesion", "--inspect", "--json"],
    )  # fmt: skip
    document = json.loads(shown.stdout)
    assert document["name"] == "m" and "nothing else was stated" in document["notes"][0]


def test_a_contract_checks_what_it_states():
    """Those on disk, too."""
    contract = made(**SOLID)
    for wrong in ({"orientation": "ras"}, {"spacing": ((1.0, 0.5),) * 3}, {"classes": ("a", "a")}):
        with pytest.raises(ContractError):
            replace(contract, **wrong)
