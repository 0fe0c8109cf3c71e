"""Networks that answer numbers: every form of answer becomes the same sampler, and what cannot be one is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from equipoise_core.known_answers import KnownAnswers, known_image, known_masks
from equipoise_core.loading import load_model
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_core.targets import Noise, Target
from equipoise_export import Answers, ExportRefused, Options, Sizes, export
from equipoise_export.command import app
from equipoise_export.draft import Description
from equipoise_export.errors import SpecError
from equipoise_export.graph.session import OnnxSampler
from torch import nn
from typer.testing import CliRunner

pytestmark = [pytest.mark.slow, pytest.mark.torch]

EXAMPLE = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(1))


class Numbers(nn.Module):
    """`[N, outputs]` around `offset`, through one dropout."""

    def __init__(self, outputs: int = 2, offset: float = 120.0, form: str = "joined") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.drop, self.head = nn.Conv2d(1, 8, 3), nn.Dropout(0.3), nn.Linear(8, outputs)
        self.form = form
        self.offset = offset

    def forward(self, image: torch.Tensor) -> Any:
        numbers = self.head(self.drop(torch.relu(self.features(image)).mean((2, 3))))
        mean = numbers[:, :1] * 10 + self.offset
        if self.form == "joined":
            return torch.cat([mean, numbers[:, 1:]], 1)
        if self.form == "classes":
            return torch.softmax(numbers, 1)
        if self.form == "squeezed":
            return mean[:, 0]
        if self.form == "pooled":
            return mean[..., None, None]
        if self.form == "map":
            return self.features(image)[:, :1]
        if self.form == "named":
            return {"mu": mean[:, 0], "s": numbers[:, 1]}
        if self.form == "variance":
            return mean, nn.functional.softplus(numbers[:, 1:])
        return mean, -nn.functional.softplus(numbers[:, 1:])  # negative


def published(
    into: Path, module: Any, answers: Answers = Answers.UNSTATED, targets: tuple[str, ...] = ("age:mo",), **options: Any
) -> Any:
    given = Options(answers=answers, **{"sizes": Sizes.FIXED, "first_pass": False, **options})
    return export(
        module, into=into, name="bone", task="regression", targets=targets, example=EXAMPLE, options=given,
        preprocess="zscore",
    )  # fmt: skip


def asked(made: Any, image: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    (name,) = (name for name in made.samplers if name.endswith("sampler"))
    model = onnx.load(made.folder.parent / name / "1" / "model.onnx")
    return dict(OnnxSampler(model, threads=1)(image, masks))


@pytest.mark.parametrize(
    ("form", "answers", "options", "variance"),
    [
        ("joined", Answers.MEAN_LOG_VARIANCE, {}, np.exp),
        ("named", Answers.MEAN_LOG_VARIANCE, {"output": "mu,s"}, np.exp),
        ("variance", Answers.MEAN_VARIANCE, {"output": "0,1"}, lambda s: np.log1p(np.exp(s))),
        ("squeezed", Answers.UNSTATED, {}, None),
        ("pooled", Answers.MEAN, {}, None),
    ],
)
def test_every_form_of_answer_becomes_means_and_variances(
    tmp_path: Path, form: str, answers: Answers, options: dict[str, Any], variance: Callable[[Any], Any] | None
) -> None:
    """Against a loop over the mask bits by hand, in double precision."""
    network = Numbers(form=form).eval()
    made = published(tmp_path, network, answers, **options)
    contract = load_model(made.folder / "1").contract
    assert contract.targets == (Target("age", "mo"),) and contract.states_variance is (variance is not None)
    image = EXAMPLE[:1].numpy()
    masks = draw_masks(mask_layout(contract, contract.nominal), 5, contract.digest, 0, 6)
    found = asked(made, image, masks[None])
    keep = np.unpackbits(masks, axis=-1, bitorder="little")[:, :8] / 0.7
    with torch.no_grad():
        features = torch.relu(network.features(torch.from_numpy(image))).mean((2, 3)).double().numpy()
    numbers = (features * keep) @ network.head.weight.detach().double().numpy().T
    numbers += network.head.bias.detach().double().numpy()
    np.testing.assert_allclose(found["means"][0, :, 0], numbers[:, 0] * 10 + 120, rtol=1e-5)
    if variance is None:
        assert set(found) == {"means"} and any("no variance" in note for note in made.notes)
    else:
        np.testing.assert_allclose(found["variances"][0, :, 0], variance(numbers[:, 1]), rtol=1e-5)


def test_a_network_that_states_its_variance_has_a_first_pass_and_others_not(tmp_path: Path) -> None:
    both = published(tmp_path / "a", Numbers(), Answers.MEAN_LOG_VARIANCE, first_pass=True)
    assert list(both.samplers) == ["bone_sampler", "bone_first_pass"]
    alone = published(tmp_path / "b", Numbers(form="squeezed"), first_pass=True)
    assert list(alone.samplers) == ["bone_sampler"] and any("first pass" in note for note in alone.notes)


@pytest.mark.parametrize("offset", [1e-4, 1e5])
def test_tolerances_go_with_the_scale_of_the_numbers(tmp_path: Path, offset: float) -> None:
    """A wrong answer is noticed whatever the unit is: by a thousandth of the largest number, up or down."""

    class Scaled(Numbers):
        def forward(self, image: torch.Tensor) -> Any:
            return super().forward(image) * offset

    made = published(tmp_path, Scaled(1, 0.0))
    contract = load_model(made.folder / "1").contract
    known = KnownAnswers.read(made.proof.known_answers, contract)
    image, masks = known_image(contract, 0), known_masks(contract, 0, known.drawn_for)
    right = asked(made, image, masks[None])
    tell = {"contract": contract, "images": [0], "samples": range(4), "precision": contract.precision}
    assert all(each.passed for each in known.differences(found=right, **tell))
    largest = np.abs(known.outputs["means"]).max()
    wrong = {"means": right["means"] + np.float32(largest * 1e-3)}
    assert not all(each.passed for each in known.differences(found=wrong, **tell))


def test_an_onnx_file_of_two_outputs_is_taken(tmp_path: Path) -> None:
    """Its final Sigmoid is the network's own, and stays."""

    class Fraction(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Numbers()

        def forward(self, image: torch.Tensor) -> Any:
            mean, s = self.inner(image).chunk(2, 1)
            return torch.sigmoid(mean / 100), s

    path = tmp_path / "vendor.onnx"
    torch.onnx.export(
        Fraction().eval(), (EXAMPLE[:1],), str(path), input_names=["x"], output_names=["ef", "s"], dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    made = published(
        tmp_path / "models",
        path,
        Answers.MEAN_LOG_VARIANCE,
        ("ef:%",),
        output="ef,s",
        dropout_at="*relu*,*Relu*",
        p=0.2,
    )
    assert made.contract.noise is Noise.LOG_VARIANCE and made.contract.stochastic
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ef, s = plain.run(None, {"x": EXAMPLE[:1].numpy()})
    keep = np.full((1, 1, mask_layout(made.contract, made.contract.nominal).bytes), 255, np.uint8)
    found = asked(made, EXAMPLE[:1].numpy(), keep)  # all kept: scaled by 1/(1 − p), so near and not equal
    assert 0.0 < float(found["means"].item()) < 1.0 and abs(float(found["means"].item()) - float(ef.item())) < 0.1
    assert float(found["variances"].item()) == pytest.approx(float(np.exp(s.item())), rel=0.5)


@pytest.mark.parametrize(
    ("module", "targets", "answers", "options", "words"),
    [
        (Numbers(), ("age:mo",), Answers.UNSTATED, {}, "mean_variance or mean_log_variance"),
        (Numbers(3), ("age:mo",), Answers.UNSTATED, {}, "age) needs (1, 1)"),
        (Numbers(3), ("age:mo",), Answers.MEAN_VARIANCE, {}, "its variance"),
        (Numbers(form="map"), ("age:mo",), Answers.UNSTATED, {}, "answers [N, K] numbers"),
        (Numbers(form="named"), ("age:mo",), Answers.UNSTATED, {}, "MEAN,VARIANCE"),
        (Numbers(form="negative"), ("age:mo",), Answers.MEAN_VARIANCE, {"output": "0,1"}, "mean_log_variance"),
        (Numbers(), ("age:mo",), Answers.UNSTATED, {"output": "0,1"}, "names 2 outputs"),
        (Numbers(), ("age:mo",), Answers.MEAN_LOG_VARIANCE, {"log_variance": "1"}, "--output MEAN,LOG_VARIANCE"),
    ],
)
def test_what_is_no_such_answer_is_refused_for_its_cause(
    tmp_path: Path, module: nn.Module, targets: tuple[str, ...], answers: Answers, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ExportRefused) as refused:
        published(tmp_path / "models", module, answers, targets, **options)
    assert words in str(refused.value) and not (tmp_path / "models" / "bone").exists()


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"targets": ("age",)}, "age:mo"),
        ({"targets": None}, "--targets"),
        ({"targets": ("age:mo",), "classes": ("a", "b")}, "--classes"),
        ({"targets": ("age:mo",), "activation": "sigmoid"}, "--activation"),
        ({"targets": ("age:mo", "age:mo")}, "repeat"),
        ({"targets": ("age:mo",), "options": Options(answers=Answers.PROBABILITIES)}, "--answers probabilities"),
        ({"targets": ("age:mo",), "options": Options(deterministic=True)}, "--deterministic"),
        ({"task": "classification", "classes": ("a", "b"), "targets": ("age:mo",)}, "--targets"),
        ({"task": "classification", "classes": ("a", "b"), "options": Options(answers=Answers.MEAN)}, "--answers mean"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_runs(
    tmp_path: Path, stated: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        export(Numbers(), into=tmp_path, name="bone", example=EXAMPLE, **{"task": "regression", **stated})


def test_probabilities_given_as_numbers_are_noted(tmp_path: Path) -> None:
    made = published(tmp_path, Numbers(form="classes"), targets=("a:1", "b:1"))
    assert any("--task classification" in note for note in made.notes)
    made = published(tmp_path / "numbers", Numbers(2, 0.0), targets=("a:1", "b:1"))
    assert not any("--task classification" in note for note in made.notes)


def test_half_precision_is_proven_by_the_same_scale(tmp_path: Path) -> None:
    """Weights of a size that training gives: the samples spread by more than half precision rounds."""
    network = Numbers(offset=0.0)
    torch.nn.init.normal_(network.head.weight)
    given = Options(sizes=Sizes.FIXED, first_pass=False, answers=Answers.MEAN_LOG_VARIANCE)
    stated = {"name": "bone", "task": "regression", "targets": ("age:mo",), "example": EXAMPLE, "options": given}
    made = export(network, into=tmp_path, precision="fp16", **stated)
    assert all(check.passed for check in made.proof.checks)
    assert any("means: mean change by rounding" in check.name for check in made.proof.checks)


def test_the_command_exports_a_regression(tmp_path: Path) -> None:
    words = [f"{__file__}:Numbers", "--name", "bone", "--task", "regression", "--input-shape", "1,12,12", "--targets"]
    words += ["age:mo", "--answers", "mean_log_variance", "--sizes", "fixed", "--into", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert load_model(tmp_path / "bone" / "1").contract.targets == (Target("age", "mo"),)


def test_classes_of_a_bundle_do_not_stand_against_targets() -> None:
    """What a bundle says of its channels is not what its user says they are."""
    stated = Description.read({"task": "regression", "name": "bone", "targets": ["age:mo"], "shape": [1, 12, 12]})
    bundle = Description.read({"task": "classification", "classes": ["a", "b"], "activation": "sigmoid"})
    assert stated.over(bundle).contract(Sizes.FIXED).answers == ("age",)
