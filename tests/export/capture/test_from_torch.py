"""Which sites are found, and what is refused before anything is compiled."""

from __future__ import annotations

import pytest
import torch
from equipoise_core.contract import Task
from equipoise_export.capture.active import active_modules, refuse_batch_statistics
from equipoise_export.compile import compile_unproven
from equipoise_export.errors import CaptureRefused
from equipoise_export.graph.marker import marker_of
from equipoise_export.options import Options
from torch import Tensor, nn

from ...support.graphs import captured, contract
from ...support.networks import EveryKind, UNet


@pytest.mark.slow
def test_every_way_to_be_random_becomes_a_site(every_kind: EveryKind) -> None:
    """Modules, functions, noise and attention all appear, named by where they are, with their own p and kind."""
    model = captured(every_kind, torch.randn(2, 1, 8, 8), (8, 8))
    found = [marker_of(node) for node in model.graph if node.op_type == "Mask"]
    listed = {marker.site: (marker.kind, marker.p) for marker in found}
    assert listed == {
        "feature_alpha": ("channel", 0.2),
        "in_place": ("element", 0.1),
        "alpha": ("element", 0.2),
        "forward:dropout": ("element", 0.3),
        "forward:bernoulli": ("path", 0.2),
        "forward:rand": ("path", 0.1),
        "batch_second.self_attn:attention": ("attention", 0.1),
        "batch_second.dropout1": ("element", 0.1),
        "batch_second.dropout": ("element", 0.1),
        "batch_second.dropout2": ("element", 0.1),
        "batch_first.self_attn:attention": ("attention", 0.1),
        "batch_first.dropout1": ("element", 0.1),
        "batch_first.dropout": ("element", 0.1),
        "batch_first.dropout2": ("element", 0.1),
    }
    assert [marker.index for marker in found] == list(range(14))


def test_only_what_is_random_is_put_in_training_mode(unet: UNet) -> None:
    """BatchNorm and everything else stay in evaluation mode, and flags and statistics are given back as they were."""
    before = {name: buffer.clone() for name, buffer in unet.named_buffers()}
    flags = [part.training for part in unet.modules()]
    assert active_modules(unet, torch.randn(2, 1, 16, 16)).names == ("bottleneck_dropout", "decoder_dropout.1")
    assert [part.training for part in unet.modules()] == flags
    assert all(torch.equal(buffer, before[name]) for name, buffer in unet.named_buffers())


class Shared(nn.Module):
    """One dropout called twice, one with p = 0, one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.zero, self.never = nn.Dropout(0.5), nn.Dropout(0.0), nn.Dropout(0.5)
        self.line = nn.Linear(16, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.line(self.twice(self.zero(torch.relu(self.twice(image.flatten(1))))))


def test_a_module_called_twice_is_two_sites_and_p_zero_is_none() -> None:
    """Each call draws on its own; what drops nothing has no bits."""
    model = captured(Shared(), torch.randn(2, 1, 4, 4), (4, 4))
    assert [marker_of(node).site for node in model.graph if node.op_type == "Mask"] == ["twice", "twice#2"]


@pytest.mark.slow
def test_dynamic_sizes_are_spelled_in_the_contracts_names(unet: UNet) -> None:
    """A site's shape says X//4 where the network halves twice."""
    model = captured(unet, torch.randn(2, 1, 16, 24), ("X", "Y"), 4)
    shapes = [marker_of(node).shape for node in model.graph if node.op_type == "Mask"]
    assert shapes[0] == ("N", 16, "(X//4)", "(Y//4)")


class Decides(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.dropout(image.flatten(1), 0.5, self.training)
        return x * 2 if x.sum() > 0 else x


class Gaussian(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(1)
        return x + torch.randn_like(x) if self.training else x


class WeightDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 3))

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1) @ nn.functional.dropout(self.weight, 0.5, self.training)


class Loop(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        def body(i: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return i + 1, nn.functional.dropout(x, 0.5, self.training)

        start = (torch.zeros((), dtype=torch.int64), image.flatten(1))
        return torch._higher_order_ops.while_loop(lambda i, x: i < 3, body, start)[1]


class Fixed(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.dropout(image.reshape(2, 16), 0.5, self.training)


class NotFinite(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.dropout(image.flatten(1), 0.5, self.training) / 0.0 * 0.0


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = torch.Generator()

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(1)
        return x * (torch.rand(x.shape, generator=self.own) < 0.5) if self.training else x


class Quiet(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Decides(), "decides by the values of a tensor"),
        (Gaussian(), "`randn_like` draws random numbers"),
        (WeightDropout(), "are the same for all images"),
        (Fixed(), "fixes the number of images"),
        (OwnGenerator(), "a torch.Generator of its own"),
        (Quiet(), "nothing in it is random"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_sampled_is_refused_with_a_remedy(
    network: nn.Module, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal says what was found, where, and what to do; what torch prints meanwhile is nobody's."""
    draft = contract(task=Task.CLASSIFICATION, classes=3 if isinstance(network, WeightDropout) else 16, spatial=(4, 4))
    with pytest.raises(CaptureRefused, match=reason) as caught:
        compile_unproven(network, draft, torch.randn(2, 1, 4, 4))
    assert caught.value.site
    assert caught.value.remedy.endswith(".")
    assert capsys.readouterr() == ("", "")


def test_batchnorm_without_running_statistics_is_refused() -> None:
    """It would normalise by the batch-mates, in evaluation mode too."""
    with pytest.raises(CaptureRefused, match="batch-mates") as caught:
        refuse_batch_statistics(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)))
    assert caught.value.site == "1"


def test_batchnorm_that_insists_on_training_mode_is_refused() -> None:
    """A network may call batch_norm(training=True) whatever its flags say."""

    class Insists(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            ones = torch.ones(1)
            x = nn.functional.batch_norm(image, ones * 0, ones, training=True)
            return nn.functional.dropout(x.flatten(1), 0.5, self.training)

    draft = contract(task=Task.CLASSIFICATION, classes=16, spatial=(4, 4))
    with pytest.raises(CaptureRefused, match="BatchNorm is in training mode"):
        compile_unproven(Insists(), draft, torch.randn(2, 1, 4, 4))


def test_the_wrong_number_of_classes_is_refused(unet: UNet) -> None:
    """The output's shape is compared with what the contract promises."""
    draft = contract(classes=5, spatial=(16, 24))
    with pytest.raises(CaptureRefused, match="needs \\(1, 5, 16, 24\\)"):
        compile_unproven(unet, draft, torch.randn(2, 1, 16, 24))


@pytest.mark.slow
def test_sites_can_be_chosen_by_name_and_by_depth(unet: UNet) -> None:
    """`--sites` takes a pattern of module names, `--min-depth` a share of the network's multiplications."""
    draft, image = contract(spatial=(16, 24)), torch.randn(2, 1, 16, 24)
    by_name, _ = compile_unproven(unet, draft, image, Options(sites="decoder*"))
    by_depth, _ = compile_unproven(unet, draft, image, Options(min_depth=0.5))
    assert [site.name for site in by_name.contract.sites] == ["decoder_dropout.1"]
    assert [site.name for site in by_depth.contract.sites] == ["decoder_dropout.1"]
    with pytest.raises(CaptureRefused, match="no stochastic module matches"):
        compile_unproven(unet, draft, image, Options(sites="encoder*"))
