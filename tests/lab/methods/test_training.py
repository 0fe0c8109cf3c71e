from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from equipoise_core.contract import Activation
from equipoise_lab.methods.student import Student
from equipoise_lab.methods.student import loss as student_loss
from equipoise_lab.reference import training
from equipoise_lab.reference.augmentation import Augmentation
from equipoise_lab.reference.data import Dataset
from equipoise_lab.reference.networks import UNet
from equipoise_lab.reference.specs import NUCLEI
from equipoise_lab.reference.training import Recipe, TrainingError, fit

RECIPE = Recipe(epochs=3, batch=2, learning_rate=1e-2, augmentation=Augmentation(flips=(0,), noise=0.1))


class Killed(Exception):
    pass


@pytest.fixture
def cases() -> Dataset:
    random = np.random.default_rng(0)
    images = tuple(random.random((1, 16, 16)).astype(np.float32) for _ in range(8))
    return Dataset(tuple("abcdefgh"), images, tuple((image[0] > 0.6).astype(np.uint8) for image in images))


def small() -> UNet:
    return UNet(2, 1, (4, 4, 4, 4), (4, 4, 4), 0.3)


def weights(network) -> list:
    return [value.clone() for value in network.state_dict().values()]


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_killed_training_goes_on_as_if_it_had_not_been(cases, tmp_path, monkeypatch, killed_after) -> None:
    whole = fit(NUCLEI, RECIPE, cases, 5, small)
    save, checkpoint = training._State.save, tmp_path / "x.checkpoint"

    def killing(state, path, epochs, seconds):
        save(state, path, epochs, seconds)
        if epochs == killed_after:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training._State, "save", killing)
        fit(NUCLEI, RECIPE, cases, 5, small, checkpoint=checkpoint)
    resumed = fit(NUCLEI, RECIPE, cases, 5, small, checkpoint=checkpoint)
    assert all(torch.equal(one, other) for one, other in zip(weights(whole), weights(resumed), strict=True))
    other_seed = fit(NUCLEI, RECIPE, cases, 6, small)
    assert not all(torch.equal(one, other) for one, other in zip(weights(whole), weights(other_seed), strict=True))


def test_a_students_teacher_goes_on_where_it_was(cases, tmp_path, monkeypatch) -> None:
    """What it teaches depends on how many images it has seen, which a training that goes on has to know."""

    def teacher(image, seen):
        mean = torch.full_like(image, 1 / (2 + seen))
        return mean, mean / 9, mean / 9

    def train(checkpoint=None):
        make = lambda: Student(small(), Activation.SIGMOID)  # noqa: E731
        return fit(NUCLEI, RECIPE, cases, 5, make, partial(student_loss, teacher), checkpoint=checkpoint)

    save, checkpoint = training._State.save, tmp_path / "x.checkpoint"

    def killing(state, path, epochs, seconds):
        save(state, path, epochs, seconds)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training._State, "save", killing)
        train(checkpoint)
    whole, resumed = train(), train(checkpoint)
    assert all(torch.equal(one, other) for one, other in zip(weights(whole), weights(resumed), strict=True))
    assert int(whole.seen) == RECIPE.epochs * len(cases)


def test_a_checkpoint_of_another_training_is_refused(cases, tmp_path) -> None:
    fit(NUCLEI, RECIPE, cases, 5, small, checkpoint=tmp_path / "x.checkpoint")
    with pytest.raises(TrainingError, match="another recipe, seed or other cases"):
        fit(NUCLEI, replace(RECIPE, learning_rate=0.1), cases, 5, small, checkpoint=tmp_path / "x.checkpoint")


def test_a_loss_that_is_not_finite_stops_the_training(cases) -> None:
    with pytest.raises(TrainingError, match="the loss became nan in epoch 1"):
        fit(NUCLEI, RECIPE, cases, 5, small, lambda network, image, target: network(image).sum() * float("nan"))


def test_frozen_parts_stay_as_they_are(cases) -> None:
    """Neither weights nor running statistics move, and nothing drops in them."""

    class Headed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.backbone, self.head = small().requires_grad_(False), torch.nn.Conv2d(1, 1, 1)

        def forward(self, image):
            assert not any(part.training for part in self.backbone.modules())
            return self.head(self.backbone(image))

    before = weights(Headed().backbone)
    after = fit(NUCLEI, RECIPE, cases, 5, Headed)
    assert all(torch.equal(one, other) for one, other in zip(before, weights(after.backbone), strict=True))
    assert not torch.equal(after.head.weight, Headed().head.weight)
