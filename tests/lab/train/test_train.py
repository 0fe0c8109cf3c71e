"""`equipoise train` on cases that anybody can draw: who is trained on, what is learnt, what is refused."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from equipoise_core.contract import Activation
from equipoise_export.calibration.cases import Labelled
from equipoise_export.calibration.errors import CalibrationError
from equipoise_export.calibration.reading import without
from equipoise_export.command import app as export_app
from equipoise_export.draft import Description
from equipoise_export.errors import SpecError
from equipoise_export.options import Sizes
from equipoise_lab.reference.training import TrainingError
from equipoise_lab.train.cases import IGNORED, MILD, Sample, batches, deal, samples, stack, write_parts
from equipoise_lab.train.command import app
from equipoise_lab.train.fit import Epoch, Recipe, evaluate, fit, loss_of
from torch import nn
from typer.testing import CliRunner

NETWORKS = """
import torch
from torch import nn

def unet(classes=2):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 1),
    )

def sure():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.Softmax(1))

def half():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2))
"""


def contract(**stated):
    given = {
        "name": "disc", "task": "segmentation", "shape": (1, 32, 32), "classes": ("background", "disc"), **stated
    }  # fmt: skip
    return Description.read(given).contract(Sizes.DYNAMIC)


def discs(count, size=32):
    """Bright discs on noise, and their masks."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    for number in range(count):
        row, column, radius = random.integers(8, 24), random.integers(8, 24), random.integers(4, 8)
        mask = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        image = (random.normal(0, 0.5, (1, size, size)) + 3 * mask).astype(np.float32)
        yield Labelled(f"images/{number}.npy", f"p{number // 2}", image, mask.astype(np.uint8))


@pytest.fixture
def folder(tmp_path) -> Path:
    """40 cases, two of each patient, and networks beside them."""
    (tmp_path / "networks.py").write_text(NETWORKS)
    for part in ("images", "labels"):
        (tmp_path / "cases" / part).mkdir(parents=True)
    rows = []
    for case in discs(40):
        np.save(tmp_path / "cases" / case.name, case.image)
        np.save(tmp_path / "cases" / "labels" / Path(case.name).name, case.truth)
        rows.append((case.name, case.patient))
    with (tmp_path / "cases" / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "patient"), *rows])
    return tmp_path


def test_no_patient_is_in_two_parts():
    """And the shares are kept, whatever the order of the cases."""
    cases = list(discs(40))
    parts = deal(cases, 0.25, 0.4)
    patients = [{case.patient for case in those} for those in parts.named.values()]
    assert [len(those) for those in patients] == [9, 3, 8]
    assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]
    again = deal(cases[::-1], 0.25, 0.4)
    assert [{case.patient for case in those} for those in again.named.values()] == patients


def test_too_few_patients_are_refused():
    with pytest.raises(TrainingError, match="2 patients leave 0 to train on"):
        deal(list(discs(4)), 0.2, 0.4)


def test_what_was_trained_on_is_left_out_of_a_calibration(tmp_path):
    """The case, others of its patient, and the same image under another name."""
    cases = list(discs(40))
    parts = deal(cases, 0.25, 0.4)
    write_parts(tmp_path / "w.cases.csv", parts)
    assert [case.name for case in without(cases, tmp_path / "w.cases.csv")] == [case.name for case in parts.held_out]
    renamed = [Labelled(f"x{n}", f"y{n}", case.image, case.truth) for n, case in enumerate(cases)]
    assert len(without(renamed, tmp_path / "w.cases.csv")) == len(parts.held_out)
    assert without(cases, None) == cases
    with pytest.raises(CalibrationError, match="all 18 cases were trained on"):
        without(list(parts.train), tmp_path / "w.cases.csv")
    with pytest.raises(CalibrationError, match="speaks of none of these 40 cases"):
        without([Labelled(c.name, c.patient, c.image + 1, c.truth) for c in cases], tmp_path / "w.cases.csv")
    (tmp_path / "other.csv").write_text("file,patient\na,b\n")
    with pytest.raises(CalibrationError, match="expected the table that equipoise train writes"):
        without(cases, tmp_path / "other.csv")


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_padding_counts_in_no_loss(activation):
    """Its logits get no gradient; without it the loss is the same."""
    asked = contract(activation=activation, classes=("background", "disc") if activation == "softmax" else ("disc",))
    assert asked.activation is Activation(activation)
    several = activation == "sigmoid"
    random = np.random.default_rng(0)
    truths = [random.integers(0, 2, (1, *size) if several else size).astype(np.uint8) for size in ((8, 8), (5, 6))]
    _, targets = stack(asked, [Sample(np.zeros((1, *truth.shape[-2:]), np.float32), truth) for truth in truths])
    logits = torch.randn(2, len(asked.classes), 8, 8, requires_grad=True)
    loss = loss_of(asked, logits, targets, 0.5)
    loss.backward()
    outside = (targets[:, :1] if several else targets[:, None]) == IGNORED
    assert outside.sum() == 64 - 30
    assert logits.grad[outside.expand_as(logits)].abs().max() == 0
    assert logits.grad[~outside.expand_as(logits)].abs().min() > 0
    changed = logits.detach().clone()
    changed[outside.expand_as(changed)] = 100.0
    assert loss_of(asked, changed, targets, 0.5) == pytest.approx(loss.item(), abs=1e-6)


def test_images_larger_than_the_network_sees_are_trained_in_parts_and_measured_whole():
    """Every other part has foreground in it, and windows cover all of the image."""
    asked = contract(shape=(1, 16, 16))
    image, truth = np.zeros((1, 70, 90), np.float32), np.zeros((70, 90), np.uint8)
    truth[3:6, 80:84], image[0, 3:6, 80:84] = 1, 5.0
    seen = [
        batch for _ in range(40) for batch in batches(asked, [Sample(image, truth)], 1, np.random.default_rng(_), MILD)
    ]
    assert all(images.shape[2:] == (16, 16) and targets.shape[1:] == (16, 16) for images, targets in seen)
    assert 8 < sum(bool((targets == 1).any()) for _, targets in seen) < 35
    network = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 10.0]).reshape(2, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.0, -25.0]))
    _, quality = evaluate(network, asked, [Sample(image, truth)], 0.5)
    assert quality == 1.0


@pytest.mark.parametrize(("size", "seen"), [(1, [1] * 5), (2, [2, 2]), (4, [4]), (5, [5]), (8, [5])])
def test_a_lone_image_is_left_over_only_of_larger_batches(size, seen):
    """BatchNorm has nothing to compare it with; where each batch is one image, none would be left."""
    of = [Sample(case.image, case.truth) for case in discs(5)]
    found = batches(contract(), of, size, np.random.default_rng(0), MILD)
    assert [len(images) for images, _ in found] == seen


def test_one_image_at_a_time_trains_what_can_be_trained_so():
    """A network that cannot says so, with its own words and what to do."""
    of = [Sample(case.image, case.truth) for case in discs(4)]
    recipe = Recipe(epochs=1, batch=1)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    (epoch,) = fit(network, contract(), of, of, recipe, lambda *_: None)
    assert np.isfinite(epoch.loss)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    asked = contract(task="classification", classes=("normal", "ill"))
    whole = [Sample(each.image, np.uint8(0)) for each in of]
    with pytest.raises(TrainingError, match=r"on 1 images at once: ValueError: Expected more than 1 value.*--batch"):
        list(fit(pooled, asked, whole, whole, recipe, lambda *_: None))


@pytest.mark.parametrize("multiple", [0, -8])
def test_sizes_are_padded_to_a_multiple_of_one_or_more(multiple):
    with pytest.raises(SpecError, match=f"--multiple {multiple}: expected a whole number from 1 on"):
        contract(multiple=multiple)


def test_labels_of_a_whole_image_stay_when_it_is_turned():
    """One class, or several that may hold together."""
    for truth in (np.uint8(1), np.array([1, 0, 1], np.uint8)):
        moved, same = MILD.deform(np.ones((1, 8, 8), np.float32), np.asarray(truth), np.random.default_rng(0))
        assert moved.shape == (1, 8, 8) and np.array_equal(same, truth)


def test_overlapping_labels_turn_with_the_image():
    """Each as it would alone."""
    masks = np.zeros((2, 24, 24), np.uint8)
    masks[0, 4:20, 4:20], masks[1, 8:12, 4:20] = 1, 1
    image = np.zeros((1, 24, 24), np.float32)
    _, both = MILD.deform(image, masks, np.random.default_rng(0))
    for mask, moved in zip(masks, both, strict=True):
        assert np.array_equal(MILD.deform(image, mask, np.random.default_rng(0))[1], moved)
        assert not np.array_equal(mask, moved)


def trained(recipe):
    asked, cases = contract(), list(discs(24))
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    exec(NETWORKS, scope)
    network = scope["unet"]()
    kept: list[Epoch] = []
    epochs = list(
        fit(network, asked, samples(asked, cases[:16]), samples(asked, cases[16:]), recipe, lambda _, e: kept.append(e))
    )
    return network, epochs, kept


def test_it_learns_stops_and_repeats_itself():
    """What is kept is each best so far; a patience of 2 ends it; the same seed gives the same weights."""
    network, epochs, kept = trained(Recipe(epochs=12, patience=20, learning_rate=1e-2))
    assert kept == [epoch for epoch in epochs if epoch.best] and len(epochs) == 12
    assert kept[-1].validation_loss == min(epoch.validation_loss for epoch in epochs)
    assert kept[-1].validation_loss < 0.5 * epochs[0].validation_loss and kept[-1].quality > 0.8
    twin, _, _ = trained(Recipe(epochs=12, patience=20, learning_rate=1e-2))
    for name, value in network.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    _, stopped, _ = trained(Recipe(epochs=50, patience=2, learning_rate=1.0))
    assert len(stopped) < 50 and not any(epoch.best for epoch in stopped[-2:])


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


GIVEN = ("--task", "segmentation", "--input-shape", "1,32,32", "--classes", "background,disc")


@pytest.mark.parametrize(
    ("network", "words", "said"),
    [
        ("sure", (), "lie between 0 and 1, like probabilities"),
        ("half", (), "answers [2, 2, 16, 16] to images [2, 1, 32, 32]; expected logits [2, 2, 32, 32]"),
        ("unet", ("--arg", "classes=3"), "answers [2, 3, 32, 32]"),
        ("nothing", (), "has no nothing"),
        ("unet", ("--input-shape", "3,32,32"), "channels"),
        ("unet", ("--out", "weights.onnx"), "expected a name that ends in .safetensors, .pt or .pth"),
        ("unet", ("--classes", "background,disc,star", "--arg", "classes=3"), "none shows star"),
        ("unet", ("--weights", "nothing.pt"), "nothing.pt"),
    ],
)
def test_what_cannot_be_trained_is_said_before_it_is(folder, network, words, said):
    """With what was found and what was expected; nothing is left behind."""
    out = ("--out", folder / "w.pt") if "--out" not in words else ()
    result = run(f"{folder / 'networks.py'}:{network}", "--data", folder / "cases", *GIVEN, *out, *words)
    assert result.exit_code == 1 and said in " ".join(result.output.split()), result.output
    assert not list(folder.glob("w.pt"))


@pytest.mark.slow
def test_the_next_steps_are_commands_that_work(folder, monkeypatch):
    """Trained, exported with the weights, and the held-out patients are those that a calibration would see."""
    out = folder / "disc.safetensors"
    result = run(
        f"{folder / 'networks.py'}:unet", "--data", folder / "cases", *GIVEN, "--out", out, "--epochs", 4,
        "--learning-rate", 0.01, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["cases"] == {"train": 20, "validation": 4, "held out": 16}
    export, calibrate = (shlex.split(line) for line in said["next"])
    assert export[:2] == ["equipoise", "export"] and calibrate[:3] == ["equipoise", "calibrate", "disc"]
    monkeypatch.chdir(folder)
    exported = CliRunner().invoke(export_app, export[2:])
    assert exported.exit_code == 0, exported.output
    assert (folder / "models" / "disc" / "1" / "contract.json").is_file()
    with Path(calibrate[calibrate.index("--leave-out") + 1]).open(newline="") as file:
        parts = [row["part"] for row in csv.DictReader(file)]
    assert parts.count("held out") == 16 and len(parts) == 40


@pytest.mark.slow
def test_a_classifier_with_labels_that_may_hold_together(tmp_path):
    """A column for each class in cases.csv; weights as torch's own state dict."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))\n"
    )
    random = np.random.default_rng(0)
    rows = []
    (tmp_path / "cases").mkdir()
    for number in range(60):
        left, right = number % 2, number // 2 % 2
        image = random.normal(0, 1, (8, 8)).astype(np.float32)
        image[:, :4] += 4 * left
        image[:, 4:] += 4 * right
        np.save(tmp_path / "cases" / f"{number}.npy", image)
        rows.append((f"{number}.npy", left, right))
    with (tmp_path / "cases" / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "left", "right"), *rows])
    result = run(
        f"{tmp_path / 'net.py'}:net", "--data", tmp_path / "cases", "--task", "classification", "--activation",
        "sigmoid", "--input-shape", "1,8,8", "--classes", "left,right", "--preprocess", "scale_range:0,4", "--out",
        tmp_path / "w.pt", "--epochs", 30, "--learning-rate", 0.01, "--no-augment", "--held-out", 0, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["best"]["quality"] > 0.9 and "OTHER_CASES" in said["next"][1]
    assert "--activation sigmoid" in said["next"][0] and "scale_range:0,4" in said["next"][0]
    assert set(torch.load(tmp_path / "w.pt", weights_only=True)) == {"1.weight", "1.bias", "4.weight", "4.bias"}
