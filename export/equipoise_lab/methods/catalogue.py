"""Every method, each in one place: how it is trained, what it publishes. A new one is a function and a line below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from equipoise_core.contract import Contract
from equipoise_export.calibration.choose import deal_folds
from numpy.typing import NDArray
from rich.progress import track
from torch import nn

from ..reference.data import Dataset
from ..reference.evaluate import logits
from . import calibrated, heteroscedastic, segwithu, student
from .backbones import trans_unet, unet_plus_plus
from .stated import switched_off
from .workshop import DYNAMIC, Product, SamplerTeacher, Workshop

ONE_PASS = replace(DYNAMIC, deterministic=True)
FOLDS = 3
MEMBERS = 3
TEACHER_SAMPLES = 10
HEAD_WIDTH = {2: 12, 3: 8}
"""Channels of SegWithU's head per spatial rank. Even these cost 2.9 and 1.9 times the backbone's pass, served."""


@dataclass(frozen=True)
class Method:
    """One uncertainty method.

    Attributes:
        name: joined to the data set's it is the public model's: `nuclei_mc_dropout`.
        title: for people.
        source: where it comes from.
        build: trains what is not trained yet, and compiles it under a draft of the contract.
        trainings: how the names of its trainings begin: their time is the method's.
    """

    name: str
    title: str
    source: str
    build: Callable[[Workshop, Contract], Product]
    trainings: tuple[str, ...]


def deterministic(workshop: Workshop, draft: Contract) -> Product:
    """The base network with its dropout off: what everything else is compared with."""
    return Product((workshop.compiled(switched_off(workshop.base()), draft, ONE_PASS),))


def mc_dropout(workshop: Workshop, draft: Contract) -> Product:
    return Product((workshop.compiled(workshop.base(), draft),))


def mc_unet_plus_plus(workshop: Workshop, draft: Contract) -> Product:
    network = workshop.fit("unetpp", lambda: unet_plus_plus(workshop.rank, workshop.classes), epochs=8)
    return Product((workshop.compiled(network, draft),))


def mc_trans_unet(workshop: Workshop, draft: Contract) -> Product:
    network = workshop.fit("transunet", lambda: trans_unet(workshop.rank, workshop.classes), epochs=8)
    return Product((workshop.compiled(network, draft),))


def deep_ensemble(workshop: Workshop, draft: Contract) -> Product:
    """Lakshminarayanan et al. 2017: the same network trained several times, dropout off."""
    return Product(tuple(workshop.compiled(switched_off(member), draft, ONE_PASS) for member in members(workshop)))


def dropout_ensemble(workshop: Workshop, draft: Contract) -> Product:
    """The same members with their dropout on: they share the samples out among them."""
    return Product(tuple(workshop.compiled(member, draft) for member in members(workshop)))


def members(workshop: Workshop) -> list[nn.Module]:
    """The base network is the first."""
    others = (workshop.fit(f"member{index}", epochs=10, member=index) for index in range(1, MEMBERS))
    return [workshop.base(), *others]


def calibrated_ensemble(workshop: Workshop, draft: Contract) -> Product:
    """Out-of-fold votes make the table; members fine-tuned on all cases vote in service."""
    tables = vote_tables(workshop)
    network = calibrated.CalibratedEnsemble(
        leaning(workshop, "calibrated", workshop.base, workshop.cases), tables, workshop.activation
    )
    return Product((workshop.compiled(network, replace(draft, states_moments=True), ONE_PASS),))


def leaning(workshop: Workshop, name: str, shared: Callable[[], nn.Module], cases: Dataset) -> list[nn.Module]:
    """The members, one for each w, fine-tuned from a shared checkpoint."""
    losses = {f"{name}_w{w:+d}": partial(calibrated.loss, workshop.activation, w) for w in calibrated.WEIGHTS}
    return [
        workshop.fit(member, shared, loss, epochs=1, learning_rate=1e-3, cases=cases) for member, loss in losses.items()
    ]


def vote_tables(workshop: Workshop) -> list[NDArray[np.float64]]:
    """Per structure the share of voxels that are of it, by the number of votes of members that did not see the case."""
    name = "calibrated_votes"
    training = workshop.identity(name)
    if (workshop.folder / f"{name}.json").is_file():
        return [np.array(table) for table in workshop.known(name, training)["tables"]]
    fold_of = deal_folds(workshop.cases.ids, FOLDS)
    votes: list[NDArray[np.int64]] = []
    truths: list[NDArray[np.uint8]] = []
    for fold in range(FOLDS):
        others = workshop.cases.select([case for case in workshop.cases.ids if fold_of[case] != fold])
        held_out = workshop.cases.select([case for case in workshop.cases.ids if fold_of[case] == fold])
        shared = workshop.fit(f"calibrated_fold{fold}", epochs=6, cases=others)
        voters = leaning(workshop, f"calibrated_fold{fold}", partial(deepcopy, shared), others)
        cases = list(zip(held_out.images, held_out.targets, strict=True))
        for image, truth in track(cases, f"{workshop.reference.name}: votes of fold {fold}"):
            answers = [logits(workshop.reference, voter, image)[None] for voter in voters]
            marks = [calibrated.votes_of(answer, workshop.activation)[0] for answer in answers]
            votes.append(np.sum([mark.round().numpy() for mark in marks], axis=0).astype(np.int64))
            truths.append(truth)
    tables = [
        calibrated.vote_table([v[index] for v in votes], [t == index + 1 for t in truths], len(calibrated.WEIGHTS))
        for index in range(len(votes[0]))
    ]
    workshop.note(name, {"training": training, "seconds": 0.0, "tables": [table.tolist() for table in tables]})
    return tables


def heteroscedastic_network(workshop: Workshop, draft: Contract) -> Product:
    network = workshop.fit(
        "heteroscedastic",
        lambda: heteroscedastic.HeteroscedasticUNet(workshop.base()),
        partial(heteroscedastic.loss, workshop.activation, 0.25),
        epochs=6,
        learning_rate=1e-3,
    )
    outputs = replace(DYNAMIC, output=heteroscedastic.LOGITS, log_variance=heteroscedastic.LOG_VARIANCE)
    return Product((workshop.compiled(network, draft, outputs),))


def seg_with_u(workshop: Workshop, draft: Contract) -> Product:
    network = workshop.fit(
        "segwithu",
        lambda: segwithu.SegWithU(workshop.base(), workshop.rank, workshop.activation, HEAD_WIDTH[workshop.rank]),
        segwithu.loss,
        epochs=6,
        learning_rate=1e-3,
    )
    return Product((workshop.compiled(network, replace(draft, states_moments=True), ONE_PASS),))


def distilled_student(workshop: Workshop, draft: Contract) -> Product:
    def make() -> nn.Module:
        return student.Student(workshop.base(), workshop.activation)

    teacher = SamplerTeacher(workshop.compiled(workshop.base(), workshop.draft), TEACHER_SAMPLES)
    network = workshop.fit("student", make, partial(student.loss, teacher), epochs=6, learning_rate=1e-3)
    return Product((workshop.compiled(network, replace(draft, states_moments=True), ONE_PASS),))


def cascade(workshop: Workshop, draft: Contract) -> Product:
    """The student as first pass; what it leaves undecided is sampled."""
    (first_pass,) = distilled_student(workshop, draft).members
    return Product(mc_dropout(workshop, draft).members, first_pass)


CATALOGUE: Sequence[Method] = (
    Method("deterministic", "one plain pass", "–", deterministic, ("base",)),
    Method("mc_dropout", "Monte Carlo dropout, U-Net", "Gal & Ghahramani 2016", mc_dropout, ("base",)),
    Method("mc_unetpp", "Monte Carlo dropout, UNet++", "Zhou et al. 2018", mc_unet_plus_plus, ("unetpp",)),
    Method("mc_transunet", "Monte Carlo dropout, TransUNet-like", "Chen et al. 2021", mc_trans_unet, ("transunet",)),
    Method("ensemble", "deep ensemble", "Lakshminarayanan et al. 2017", deep_ensemble, ("base", "member")),
    Method("dropout_ensemble", "ensemble of dropout networks", "both", dropout_ensemble, ("base", "member")),
    Method("calibrated", "calibrated ensemble", "Buddenkotte et al. 2023", calibrated_ensemble, ("base", "calibrated")),
    Method(
        "heteroscedastic", "heteroscedastic, with dropout", "Kendall & Gal 2017", heteroscedastic_network,
        ("base", "heteroscedastic"),
    ),
    Method("segwithu", "SegWithU", "arXiv 2604.15271", seg_with_u, ("base", "segwithu")),
    Method("student", "distilled student", "Bulò et al. 2016", distilled_student, ("base", "student")),
    Method("cascade", "student, then samples", "own", cascade, ("base", "student")),
)  # fmt: skip
