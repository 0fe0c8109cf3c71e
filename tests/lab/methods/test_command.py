import json

import pytest
from equipoise_core.loading import load_model
from equipoise_lab.methods import command
from equipoise_lab.methods.catalogue import CATALOGUE
from equipoise_lab.reference.data import load
from typer.testing import CliRunner


def run(*words: str):
    return CliRunner().invoke(command.app, list(words))


def test_the_catalogue_is_listed() -> None:
    result = run("--list", "--json")
    assert [each["name"] for each in json.loads(result.stdout)] == [method.name for method in CATALOGUE]
    assert len({method.name for method in CATALOGUE}) == len(CATALOGUE)


@pytest.mark.parametrize(
    ("words", "said"),
    [(("voodoo",), "there is no method voodoo; there are deterministic, mc_dropout"), (("--on", "liver"), "liver")],
)
def test_what_does_not_exist_is_said_with_what_does(words, said, tmp_path) -> None:
    result = run(*words, "--into", str(tmp_path / "models"))
    assert result.exit_code == 1 and said in " ".join(result.output.split())
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_methods_are_trained_once_and_published(tmp_path, monkeypatch) -> None:
    """On a few images, one epoch: a cascade has its student's training; a second run trains nothing."""
    few = load("nuclei")
    few = few.select(few.ids[:24])
    monkeypatch.setattr(command, "load", lambda name: few)
    models = tmp_path / "models"
    words = ("--on", "nuclei", "--into", str(models), "--epochs", "1", "--no-calibrate", "--json")
    first = run("cascade", *words)
    assert first.exit_code == 0, first.output
    (weights,) = models.rglob("*.safetensors")
    written = weights.stat().st_mtime_ns
    assert weights.stem == "student" and not list(models.rglob("*.checkpoint"))
    again = run("student", *words)
    assert again.exit_code == 0 and weights.stat().st_mtime_ns == written
    other = run("student", *words, "--seed", "1")
    assert other.exit_code == 1 and "another seed" in " ".join(other.output.split())
    assert weights.stat().st_mtime_ns == written
    cascade = load_model(models / "nuclei_cascade" / "1").contract
    student = load_model(models / "nuclei_student" / "1").contract
    assert cascade.stochastic and cascade.of_first_pass.states_moments
    assert student.states_moments and not student.stochastic
    told = json.loads((models / "nuclei_student" / "training.json").read_text())
    assert told["title"] == "distilled student" and told["seconds"] > 0
