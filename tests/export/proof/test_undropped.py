"""With nothing dropped, what was handed in and what was read answer alike; probabilities are told from logits."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest
import torch
from equipoise_core.contract import Activation, Task
from equipoise_export.compile import compile_sampler
from equipoise_export.compiled import Compiled
from equipoise_export.errors import ProofRefused
from equipoise_export.options import Answers, Options, Sizes
from torch import Tensor, nn
from torch.nn import functional

from ...support.graphs import contract

IMAGES = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
SEGMENTATION = contract(spatial=(16, 16))
FIXED = Options(sizes=Sizes.FIXED)


class Net(nn.Module):
    """Two logits per pixel, with dropout as `training` says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def logits(self, x: Tensor) -> Tensor:
        return 8 * self.head(functional.dropout2d(functional.relu(self.conv(x)), 0.1, self.training))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


class Flips(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x) if self.training else (self.logits(x) + self.logits(x.flip(-1)).flip(-1)) / 2


class Temperature(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x) if self.training else self.logits(x) / 4


class OtherOutput(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x) if self.training else self.logits(x).argmax(1)


@pytest.mark.parametrize("kind", [Flips, Temperature, OtherOutput])
def test_a_training_flag_that_does_more_than_dropout_is_refused(kind):
    """The sampler would take the training path, and the proof, in the same mode, would agree."""
    with pytest.raises(ProofRefused, match=r"training flag|in evaluation"):
        compile_sampler(kind(), SEGMENTATION, IMAGES, FIXED)


class PathByBernoulli(Net):
    """As torchvision: a mask of its own, scaled by what is kept."""

    def logits(self, x: Tensor) -> Tensor:
        features = functional.relu(self.conv(x))
        if self.training:
            features = features * torch.empty(len(x), 1, 1, 1).bernoulli_(0.8).div_(0.8)
        return self.head(features)


class PathUnscaled(Net):
    def logits(self, x: Tensor) -> Tensor:
        features = functional.relu(self.conv(x))
        if self.training:
            features = features * torch.empty(len(x), 1, 1, 1).bernoulli_(0.8)
        return self.head(features)


class PathByRounding(Net):
    """As early timm: what it is with nothing dropped cannot be told from its noise."""

    def logits(self, x: Tensor) -> Tensor:
        features = functional.relu(self.conv(x))
        if self.training:
            features = features / 0.8 * torch.floor(0.8 + torch.rand(len(x), 1, 1, 1))
        return self.head(features)


class Alpha(Net):
    def logits(self, x: Tensor) -> Tensor:
        return self.head(functional.alpha_dropout(functional.selu(self.conv(x)), 0.2, self.training))


@pytest.mark.parametrize(
    ("kind", "checked"),
    [(Net, True), (PathByBernoulli, True), (PathUnscaled, True), (PathByRounding, False), (Alpha, True)],
)
def test_a_flag_that_switches_noise_only_is_taken(kind, checked):
    """Functional dropout of any kind and masks of one's own: nothing ordinary is refused."""
    compiled = compile_sampler(kind(), SEGMENTATION, IMAGES, FIXED)
    assert ("the module in evaluation: same with nothing dropped" in _checks(compiled)) == checked


def _checks(compiled: Compiled) -> set[str]:
    return {check.name for check in compiled.proof.checks}


class Classifier(nn.Module):
    """Ends in a sigmoid, a softmax, or in logits that happen to lie in [0, 1] for ordinary images."""

    def __init__(self, classes: int, end: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.3))
        self.head, self.end = nn.Linear(8, classes), end

    def forward(self, x: Tensor) -> Tensor:
        z = self.head(self.features(x).mean((2, 3)))
        if self.end == "small logits":
            return 0.05 * z + 0.5
        return torch.sigmoid(4 * z - 2) if self.end == "sigmoid" else torch.softmax(4 * z, 1)


def _draft(classes: int, activation: Activation):
    return contract(classes=classes, spatial=(16, 16), task=Task.CLASSIFICATION, activation=activation)


ENDS = {
    "one logit": (1, "sigmoid", Activation.SIGMOID),
    "multi-label": (5, "sigmoid", Activation.SIGMOID),
    "softmax": (3, "softmax", Activation.SOFTMAX),
}


@pytest.mark.parametrize("kind", ENDS)
def test_probabilities_are_refused_or_taken_as_they_are(kind):
    """A second sigmoid or softmax would give others; stated, the sampler's mean is the network's own."""
    classes, end, activation = ENDS[kind]
    network, draft = Classifier(classes, end), _draft(classes, activation)
    with pytest.raises(ProofRefused, match="already is probabilities"):
        compile_sampler(network, draft, IMAGES, FIXED)
    compiled = compile_sampler(network, draft, IMAGES, Options(sizes=Sizes.FIXED, answers=Answers.PROBABILITIES))
    assert "the module in evaluation: same with nothing dropped" in _checks(compiled)


def test_independent_probabilities_under_softmax_are_refused():
    """They lie in [0, 1] and do not add up: the contract's activation is wrong."""
    with pytest.raises(ProofRefused, match="--activation sigmoid"):
        compile_sampler(Classifier(3, "sigmoid"), _draft(3, Activation.SOFTMAX), IMAGES, FIXED)
    with pytest.raises(ProofRefused, match="nothing dropped"):
        compile_sampler(
            Classifier(3, "sigmoid"), _draft(3, Activation.SOFTMAX), IMAGES,
            Options(sizes=Sizes.FIXED, answers=Answers.PROBABILITIES),
        )  # fmt: skip


def test_logits_that_an_extreme_image_drives_out_of_the_unit_interval_are_logits():
    """Small ones of an ordinary image are not mistaken for probabilities."""
    compile_sampler(Classifier(2, "small logits"), _draft(2, Activation.SOFTMAX), IMAGES, FIXED)


CLIPPED = """<ir_version: 8, opset_import: ["" : 18]>
vendor (float[N, 1, 16, 16] x) => (float[N, 2] y)
<float w = {1.0}, float low = {0.01}, float high = {0.99}, int64[2] axes = {2, 3}, float[1, 2] v = {4.0, -3.0}>
{ d = Dropout (x) m = ReduceMean <keepdims = 0> (d, axes) z = MatMul (m, v) s = Sigmoid (z) y = Clip (s, low, high) }"""


def test_a_file_that_ends_in_probabilities_behind_other_nodes():
    """Clip or Mul behind a Sigmoid hide it; stated, they are taken as they are."""
    proto, draft = onnx.parser.parse_model(CLIPPED), _draft(2, Activation.SIGMOID)
    with pytest.raises(ProofRefused, match="already is probabilities"):
        compile_sampler(proto, draft, IMAGES)
    compiled = compile_sampler(proto, draft, IMAGES, Options(answers=Answers.PROBABILITIES))
    assert "the file, nothing dropped: same as what was read from it" in _checks(compiled)
