"""What export changes of PyTorch for the whole process is as before afterwards, in whichever order uses end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from equipoise_export.graph.randomness import plainly, slow_attention

pytestmark = pytest.mark.torch


def state() -> list[object]:
    kinds = (torch.autocast, torch.inference_mode, torch.enable_grad, torch.set_grad_enabled)
    methods = [each for kind in kinds for each in (kind.__init__, kind.__enter__, kind.__exit__)]
    return [*methods, torch.backends.mha.get_fastpath_enabled()]


def test_uses_that_overlap_in_two_threads_leave_nothing() -> None:
    """The first to begin is the first to end; until the last has ended, the change holds."""
    before = state()
    uses = [ExitStack(), ExitStack()]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        threads = (one, other)
        for thread, use in zip(threads, uses, strict=True):
            for change in (plainly, slow_attention):
                thread.submit(use.enter_context, change()).result()
        changed = state()
        assert changed != before
        one.submit(uses[0].close).result()
        assert state() == changed
        other.submit(uses[1].close).result()
        assert state() == before
        assert all(thread.submit(torch.is_grad_enabled).result() for thread in threads)


def test_within_another_use_gradients_are_as_they_were() -> None:
    """A network's no_grad in the inner one does not reach the outer one."""
    with plainly():
        with plainly(), torch.no_grad():
            assert not torch.is_grad_enabled()
        assert torch.is_grad_enabled()
