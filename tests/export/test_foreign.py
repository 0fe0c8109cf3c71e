"""Networks as strangers write them are taken and proven, or refused by what hinders them."""

from __future__ import annotations

import pytest
import torch
from equipoise_export.compile import compile_sampler
from equipoise_export.compiled import Compiled
from equipoise_export.draft import Description, example_image
from equipoise_export.errors import ExportRefused

from ..support.foreign import NETWORKS, REFUSED, Foreign

pytestmark = pytest.mark.slow


def compiled(given: Foreign) -> Compiled:
    torch.manual_seed(0)
    stated = {"name": "foreign", "task": "segmentation", "shape": given.shape, "classes": given.classes}
    draft = Description.read({**stated, **given.stated}).contract(given.options.sizes)
    return compile_sampler(given.make(), draft, example_image(draft), given.options)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_taken_and_proven(name: str) -> None:
    """With the sites that it has."""
    found = compiled(NETWORKS[name])
    assert tuple(site.shape for site in found.contract.sites) == NETWORKS[name].sites
    assert not any("ONNXRuntimeError" in note for note in found.notes)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_its_cause(name: str) -> None:
    """In words that say what to do, not in a library's."""
    given, said = REFUSED[name]
    with pytest.raises(ExportRefused, match=said) as caught:
        compiled(given)
    assert "ONNXRuntimeError" not in str(caught.value)
