from functools import partial

import numpy as np
import pytest
import torch
from equipoise_core.contract import Activation
from equipoise_core.moments import moments_of_stated
from equipoise_core.uncertainty import Uncertainty
from equipoise_export.compile import compile_sampler
from equipoise_lab.methods.student import Student, loss
from equipoise_lab.methods.workshop import SamplerTeacher
from equipoise_lab.reference.networks import UNet
from torch import nn

from ...support.graphs import contract


def unet(classes: int) -> UNet:
    torch.manual_seed(0)
    network = UNet(2, classes, (4, 8), (4,), 0.4)
    with torch.no_grad():
        network.head.weight *= 20
    return network.eval()


@pytest.mark.parametrize("activation", Activation)
def test_a_fresh_student_answers_as_its_backbone(activation) -> None:
    classes = 3 if activation is Activation.SOFTMAX else 1
    image = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        logits = unet(classes)(image)
        answer = Student(unet(classes), activation).eval()(image)
    p = logits.softmax(1) if activation is Activation.SOFTMAX else logits.sigmoid()
    assert answer[:, :classes] == pytest.approx(p, abs=1e-6)


class Answering(Student):
    """A student with nothing to learn: its raw answers are parameters."""

    def __init__(self, activation, raw):
        nn.Module.__init__(self)
        self.activation, self.values = activation, nn.ParameterList(nn.Parameter(part) for part in raw)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def raw(self, image):
        return tuple(self.values)


@pytest.mark.parametrize("activation", Activation)
def test_the_loss_is_least_where_the_student_answers_as_the_teacher(activation) -> None:
    """Its gradient is 0 there, and what is stated are the teacher's mean, variance and epistemic entropy."""
    random = np.random.default_rng(0)
    k = 3 if activation is Activation.SOFTMAX else 1
    z = torch.tensor(random.normal(0, 2, (12, 1, k, 4, 4)), dtype=torch.float64)  # twelve samples of one image
    p = z.softmax(2) if k == 3 else z.sigmoid()
    mean, variance = p.mean(0), p.var(0, unbiased=False)

    def entropy(q, axis):
        h = -q * q.log()
        return h.sum(axis, keepdim=True) if k == 3 else h - (1 - q) * (1 - q).log()

    epistemic = entropy(mean, 1) - entropy(p, 2).mean(0)
    logit = partial(torch.logit, eps=1e-9)
    raw = (
        mean.log() if k == 3 else logit(mean),
        logit(variance / (mean * (1 - mean))),
        logit(epistemic / entropy(mean, 1)),
    )
    network = Answering(activation, [part.float() for part in raw])
    value = loss(
        lambda image, seen: (mean.float(), variance.float(), epistemic.float()), network, torch.zeros(1), torch.zeros(1)
    )
    value.backward()
    for part in network.values:
        assert float(part.grad.abs().max()) < 1e-5
    stated = network(torch.zeros(1))[0].detach().numpy().astype(np.float64)
    draft = contract(classes=k, activation=activation, spatial=(4, 4))
    u = Uncertainty(moments_of_stated(stated, draft), activation)
    assert u.mean == pytest.approx(mean[0].numpy(), abs=1e-5)
    assert u.variance == pytest.approx(variance[0].numpy(), abs=1e-5)
    assert u.epistemic == pytest.approx(epistemic[0].numpy(), abs=1e-5)
    assert u.stated == pytest.approx(epistemic[0].numpy().max(0, keepdims=True), abs=1e-5)


@pytest.mark.slow
def test_the_teacher_is_the_sampler() -> None:
    """Its mean nears the network's own over many masks; variance and mutual information are not low by T/(T − 1)."""
    network = unet(1)
    draft = contract(classes=1, activation=Activation.SIGMOID, spatial=("X", "Y"), nominal=(8, 8), multiple=2)
    compiled = compile_sampler(network, draft, torch.randn(2, 1, 8, 8))
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    for part in network.modules():
        if isinstance(part, nn.Dropout2d):
            part.train()
    with torch.no_grad():
        p = torch.cat([network(image).sigmoid() for _ in range(3000)]).double()
    few = SamplerTeacher(compiled, 4)
    drawn = [few(image, n) for n in range(600)]
    mean, variance, epistemic = (torch.stack(part).mean(0)[0].double() for part in zip(*drawn, strict=True))
    assert mean.numpy() == pytest.approx(p.mean(0).numpy(), abs=0.03)
    assert float(variance.mean()) == pytest.approx(float(p.var(0).mean()), rel=0.1)
    h = -(p * p.log() + (1 - p) * (1 - p).log()).mean(0)
    total = -(p.mean(0) * p.mean(0).log() + (1 - p.mean(0)) * (1 - p.mean(0)).log())
    assert float(epistemic.mean()) == pytest.approx(float((total - h).mean()), rel=0.15)
