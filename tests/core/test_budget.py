"""What shares a sampler run, and that whoever asks for much leaves room for the others between two runs."""

from __future__ import annotations

import dataclasses
import threading
from math import prod

import numpy as np
import pytest
from equipoise_core.budget import MAPS, MOST_AT_ONCE, RUN_BYTES, at_once
from equipoise_core.case import Case, Model
from equipoise_core.sampling import assess, assess_all
from equipoise_export.publish.triton_config import SAMPLER_BATCH

WINDOWS = ((8, 8), (64, 64), (256, 256), (512, 512), (1024, 1024), (4096, 4096))
WINDOWS += ((16, 16, 16), (40, 56, 40), (64, 64, 64), (128, 128, 128), (512, 512, 128))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("samples", [1, 5, 20, 1000])
@pytest.mark.parametrize("channels", [1, 4, 200])
def test_a_run_keeps_within_two_gibibytes_or_holds_a_single_image(segmentation, window, samples, channels):
    """In 2-D and 3-D, by voxels, samples and channels; never none, never more than Triton's batch, never too few."""
    contract = dataclasses.replace(segmentation, channels=channels)
    count = at_once(contract, window, samples)

    def taken(images: int) -> int:
        return images * prod(window) * (channels + MAPS * samples) * np.dtype(np.float32).itemsize

    assert 1 <= count <= MOST_AT_ONCE == SAMPLER_BATCH
    assert RUN_BYTES == 2 << 30
    assert count == 1 or taken(count) <= RUN_BYTES
    assert count == MOST_AT_ONCE or taken(count + 1) > RUN_BYTES


class Noting:
    """A sampler that runs one request at a time, in the order in which they come; notes whose run it was."""

    def __init__(self, classes: int) -> None:
        self.classes, self.runs, self.images = classes, [], []
        self.turn, self.next, self.ahead = threading.Condition(), 0, 0
        self.holding = threading.Event()
        self.holding.set()

    def of(self, caller: str):
        def run(image, masks):
            with self.turn:
                mine, self.ahead = self.ahead, self.ahead + 1
                self.turn.notify_all()
                assert self.turn.wait_for(lambda: self.next == mine, 60)
            assert self.holding.wait(60)
            with self.turn:
                self.runs.append(caller)
                self.images.append(len(image))
                self.next += 1
                self.turn.notify_all()
            p = np.full((len(image), self.classes, *image.shape[2:]), 1.0 / self.classes, np.float32)
            volumes = np.full((len(image), masks.shape[1], self.classes), float(prod(image.shape[2:])))
            t = masks.shape[1]
            return {"sum_p": p * t, "sum_p2": p * p * t, "sum_entropy": p[:, :1] * t, "volumes": volumes}

        return run

    def waiting(self, count: int) -> None:
        with self.turn:
            assert self.turn.wait_for(lambda: self.ahead - self.next >= count, 60)


@pytest.mark.parametrize(("size", "count"), [((90, 100), 1), ((16, 16), 7)])
def test_no_request_has_more_than_the_samplers_take(segmentation, size, count):
    """Triton refuses one beyond `max_batch_size`, which a GPU's memory may make smaller: of windows as of images."""
    contract = dataclasses.replace(segmentation, maximum=(16, 18))
    generator = np.random.default_rng(0)
    cases = [Case(generator.normal(size=(1, *size)).astype(np.float32), samples=3) for _ in range(count)]
    for most in (1, 2, MOST_AT_ONCE):
        sampler = Noting(len(contract.classes))
        assess_all(Model(contract, None, "none", "code", most=most), cases, [sampler.of("caller")])
        assert max(sampler.images) == min(most, count if count > 1 else MOST_AT_ONCE)


@pytest.mark.parametrize("huge", ["windows", "images"])
def test_whoever_asks_for_much_has_one_run_at_a_time(segmentation, huge):
    """The small request of another caller, which comes during a run of the large one, is served right after that."""
    contract = dataclasses.replace(segmentation, maximum=(16, 18))
    model = Model(contract, None, "none", "code")
    generator = np.random.default_rng(0)
    size, count = ((90, 100), 1) if huge == "windows" else ((16, 16), 5 * MOST_AT_ONCE)
    much = [Case(generator.normal(size=(1, *size)).astype(np.float32), samples=3) for _ in range(count)]
    small = Case(generator.normal(size=(1, 16, 16)).astype(np.float32), samples=3)
    sampler = Noting(len(contract.classes))
    sampler.holding.clear()
    threads = [threading.Thread(target=assess_all, args=(model, much, [sampler.of("huge")]))]
    threads[0].start()
    sampler.waiting(1)
    threads.append(threading.Thread(target=assess, args=(model, small, [sampler.of("small")])))
    threads[1].start()
    sampler.waiting(2)
    sampler.holding.set()
    for thread in threads:
        thread.join(60)
    assert sampler.runs[:3] == ["huge", "small", "huge"]
    assert sampler.runs.count("huge") >= 5
    assert max(sampler.images) <= MOST_AT_ONCE
