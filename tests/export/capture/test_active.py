"""Which modules drop: found by running, by structure, and refused where that cannot be seen."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from equipoise_export.capture.active import active_modules
from equipoise_export.errors import CaptureRefused
from torch import Tensor, nn
from torch.nn import functional

IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
OWN = np.random.default_rng(0)
COUNT = itertools.count()


class Block(nn.Module):
    """A residual block with dropout that is skipped in training wherever `skip` says so."""

    def __init__(self, skip: Callable[[], bool]) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(1, 1, 3, padding=1), nn.Dropout2d(0.3)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and self.skip() else x + self.drop(torch.relu(self.conv(x)))


def blocks(skip: Callable[[], bool]) -> nn.Module:
    return nn.Sequential(*(Block(skip) for _ in range(8)))


SKIPS = {
    "Python": lambda: random.random() < 0.4,
    "NumPy": lambda: np.random.rand() < 0.4,  # noqa: NPY002
    "a generator of its own": lambda: OWN.random() < 0.4,
    "torch, by an if": lambda: bool(torch.rand(1) < 0.4),
}


@pytest.mark.parametrize("kind", SKIPS)
def test_skipping_at_random_is_refused_whichever_run_it_is(kind):
    """One run would miss the dropout of what it happens to skip, and the skipping is never sampled."""
    with pytest.raises(CaptureRefused, match="skipped or changed at random"):
        active_modules(blocks(SKIPS[kind]), IMAGE)


def _of_a_closure() -> Callable[[], float]:
    own = np.random.Philox(0)
    return lambda: own.random_raw() / 2**64


NUMBERS = {
    "random.Random": [random.Random(0).random],
    "np.random.Generator": [np.random.default_rng(0).random],
    "np.random.RandomState": [np.random.RandomState(0).rand],
    "a closure, a bit generator": [_of_a_closure()],
    "a global": [lambda: OWN.random()],
    "the operating system": [random.SystemRandom().random],
    "a new generator each time": [lambda: np.random.default_rng().random()],
    "a count": [lambda: next(COUNT) / 1000],
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_random_numbers_of_its_own_are_found_whatever_they_are_kept_in(kind):
    """Neither what drops nor what is called tells: the same modules run, and dropout of torch stands beside."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.draw, self.drop = NUMBERS[kind], nn.Dropout2d(0.3)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x) * (0.5 + self.draw[0]() if self.training else 1.0)

    network = nn.Sequential(Scaled(), nn.Conv2d(8, 1, 1))
    image = IMAGE.repeat(1, 8, 1, 1)
    with pytest.raises(CaptureRefused, match="skipped or changed at random") as caught:
        active_modules(network, image)
    assert caught.value.site == "0"
    named = active_modules(network, image, chosen=True)
    assert named.names == ("0.drop",) and "at random in training" in named.notes[0]


def test_a_part_that_is_skipped_without_any_dropout_in_it_is_found():
    """By what is called: the operating system's random numbers have no state that would move."""
    system = random.SystemRandom()

    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs, self.drop = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(16)), nn.Dropout2d(0.3)

        def forward(self, x: Tensor) -> Tensor:
            for conv in self.convs:
                x = x if self.training and system.random() < 0.5 else x + conv(x)
            return self.drop(x)

    with pytest.raises(CaptureRefused, match="skipped or changed at random"):
        active_modules(Skipping(), IMAGE)


def test_random_numbers_behind_a_forward_that_raises_are_found():
    """Part by part, as dropout is."""
    with pytest.raises(CaptureRefused, match="skipped or changed at random") as caught:
        active_modules(NeedsTargets(Block(random.Random(0).random)), IMAGE)
    assert caught.value.site == "part"


def test_a_torch_generator_of_its_own_draws_like_any_other():
    """It begins where it is asked to, as the global one does, and is left as it was."""
    own = torch.Generator().manual_seed(7)
    before = own.get_state()

    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.empty_like(x).bernoulli_(0.8, generator=own) if self.training else 0.8 * x

    assert active_modules(nn.Sequential(Drops()), IMAGE).names == ("0",)
    assert torch.equal(own.get_state(), before)


def test_skipping_is_left_out_where_the_modules_that_drop_are_named():
    """In evaluation nothing is skipped: all dropout is found, and a note says what is left out."""
    found = active_modules(blocks(SKIPS["Python"]), IMAGE, chosen=True)
    assert {f"{index}.drop" for index in range(8)} <= set(found.names)
    assert "are not when it is sampled" in found.notes[0]


def test_looking_changes_nothing():
    """Neither flags nor anybody's random numbers."""
    network = blocks(SKIPS["NumPy"]).eval()
    network[0].skip = SKIPS["a generator of its own"]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    own = OWN.bit_generator.state
    with pytest.raises(CaptureRefused):
        active_modules(network, IMAGE)
    assert not any(part.training for part in network.modules())
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(before[2], torch.get_rng_state())
    assert own == OWN.bit_generator.state


class NeedsTargets(nn.Module):
    """Runs in training mode only with targets, as detection networks do."""

    def __init__(self, part: nn.Module, own: float = 0.0) -> None:
        super().__init__()
        self.part, self.own = part, own

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.training and targets is None:
            raise ValueError("in training mode, targets should be passed")
        return functional.dropout(self.part(x), self.own, self.training)


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout2d(x, 0.3, self.training)


def test_what_lies_behind_a_forward_that_raises_is_found_module_by_module():
    """Functional dropout has no type: each module of foreign code runs in training mode by itself."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(Functional(), nn.Dropout(0.2))

        def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
            if self.training and targets is None:
                raise ValueError("in training mode, targets should be passed")
            return self.part(x)

    assert active_modules(Outer(), IMAGE).names == ("part.0", "part.1")


def test_dropout_of_its_own_that_cannot_be_seen_is_refused():
    """It would be missing from the sampler, silently."""
    with pytest.raises(CaptureRefused, match="does not run in training mode"):
        active_modules(NeedsTargets(Functional(), 0.5), IMAGE)
    found = active_modules(NeedsTargets(Functional(), 0.5), IMAGE, chosen=True)
    assert found.names == ("part",)
    assert "without dropout of its own" in found.notes[0]


class OtherWay(nn.Module):
    """Takes another way in training."""

    def __init__(self) -> None:
        super().__init__()
        self.training_head, self.head = nn.Dropout(0.1), nn.Sequential(nn.Dropout(0.2), Functional())

    def forward(self, x: Tensor) -> Tensor:
        return self.training_head(x) if self.training else self.head(x)


def test_the_way_that_is_sampled_is_looked_at_too():
    """Its dropout is met only while the module around it is in evaluation mode."""
    assert set(active_modules(OtherWay(), IMAGE).names) >= {"head.0", "head.1"}


def test_random_numbers_of_python_in_evaluation_are_refused():
    """No mask stands for them, whatever the training flag says."""

    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * random.random()

    with pytest.raises(CaptureRefused, match="in evaluation mode as well"):
        active_modules(Always(), IMAGE, chosen=True)


@pytest.mark.parametrize(("layer", "features"), [(nn.Dropout1d(0.3), (2, 8)), (nn.Dropout3d(0.3), (2, 8, 4, 4))])
def test_channel_dropout_of_the_wrong_rank_is_refused_by_its_cause(layer, features):
    """PyTorch takes the images for channels and drops whole images."""
    with pytest.raises(CaptureRefused, match="drops whole images"):
        active_modules(nn.Sequential(layer), torch.randn(features))
