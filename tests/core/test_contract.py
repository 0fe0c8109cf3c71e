import dataclasses
import json

import pytest
from equipoise_core.contract import ContractError, Precision, Site, SiteKind, check_name, evaluate, parse_contract
from hypothesis import given
from hypothesis import strategies as st


def test_a_written_contract_reads_back_equal(segmentation):
    """What `contract.json` says is all there is to a contract."""
    assert parse_contract(json.loads(segmentation.dumps())) == segmentation


def test_both_copies_carry_the_same_digest(segmentation):
    """The ONNX metadata leaves the sampler files out, and with them nothing that the digest covers."""
    metadata = segmentation.graph_metadata()
    inside = parse_contract(json.loads(metadata["equipoise.contract"]))
    assert inside.digest == segmentation.digest == metadata["equipoise.digest"]
    assert inside.model_digest != segmentation.model_digest


def test_precision_is_stated(segmentation):
    half = dataclasses.replace(segmentation, precision=Precision.FP16)
    assert half.digest != segmentation.digest
    assert parse_contract(json.loads(half.dumps())) == half


def test_any_changed_entry_is_noticed(segmentation):
    """A contract whose stated digest is not its own is refused, whichever entry was changed."""
    document = json.loads(segmentation.dumps())
    for key in set(document) - {"digest", "samplers", "format"}:
        changed = dict(document)
        changed[key] = {"name": "other", "samples": 7, "channels": 2}.get(key, changed["maximum"])
        if changed[key] == document[key]:
            continue
        with pytest.raises(ContractError):
            parse_contract(changed)


@pytest.mark.parametrize("document", [None, [], {}, {"format": "equipoise-contract/1"}, {"format": 7}, "text"])
def test_what_is_not_a_contract_is_refused(document):
    """The error is always a ContractError, never a bare KeyError or TypeError."""
    with pytest.raises(ContractError):
        parse_contract(document)


def test_repeated_site_names_are_refused(segmentation):
    """A site's name is its identity."""
    with pytest.raises(ContractError, match=r"encoder\.drop"):
        dataclasses.replace(segmentation, sites=segmentation.sites[:1] * 2)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, float("nan")])
def test_p_is_a_probability_of_dropping(p):
    """Never and always dropping are not stochastic."""
    with pytest.raises(ContractError):
        Site("s", SiteKind.PATH, (), p)


@given(st.integers(1, 500), st.integers(1, 500))
def test_expressions_follow_integer_arithmetic(x, y):
    """Expressions of sizes mean what Python means by them."""
    assert evaluate("(X+3)//4*2-Y", {"X": x, "Y": y}) == (x + 3) // 4 * 2 - y


@pytest.mark.parametrize("expression", ["Z", "X**2", "__import__('os')", "X.real", "1/2", "", "X//0", "True", "("])
def test_expressions_can_only_compute_sizes(expression):
    """A contract is data: nothing in it is executed."""
    with pytest.raises(ContractError):
        evaluate(expression, {"X": 8})


@pytest.mark.parametrize("name", ["a b", "lésion", "-a", ".hidden", "a/b", "a,b", "", "a" * 101, "a\n"])
def test_a_name_that_triton_cannot_take_is_refused(name):
    """A folder, an argument of the backend's process, and a part of a URL."""
    with pytest.raises(ContractError, match="cannot be served by Triton"):
        check_name(name)
    check_name("chest_x-ray.2")
