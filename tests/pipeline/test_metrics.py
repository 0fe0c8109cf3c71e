"""What a dashboard sees of decisions: where cases lie among the calibration cases, and how many are to be audited."""

from __future__ import annotations

import re
import urllib.request

import pytest
from equipoise_core.loading import load_model

from ..support.asking import MODELS, SMALL, ask, case, picture, poll, settled

pytestmark = pytest.mark.triton


def _counts(url: str, family: str) -> dict[str, float]:
    """Labels → number, of one family of Triton's metrics page."""
    with urllib.request.urlopen(url) as page:
        text = page.read().decode()
    return {labels: float(value) for labels, value in re.findall(rf"^{family}\{{(.*)\}} (\S+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("model", MODELS)
def test_every_case_is_counted_once_for_each_watched_number(server, repository, grpc_client, contracts, model):
    """Scores, the prediction's and the input's statistics and their distance; nothing of the case but its tenth."""
    if server.metrics_url is None:
        pytest.skip("EQUIPOISE_TRITON_URL names a server whose metrics address is not known here")
    policy = load_model(repository / model / "1").policy
    assert policy is not None and policy.monitoring is not None
    watched = set(policy.monitoring.quantiles)
    assert {"ood_distance", "roughness"} <= watched
    # Numbers are told from a thread of their own, a moment after the answer: those of whoever asked before as well.
    before = settled(lambda: _counts(server.metrics_url, "equipoise_calibration_rank_count"))
    tensors = case(picture(contracts[model], SMALL[model][0], seed=3))
    for _ in range(2):
        ask(grpc_client, model, tensors, ("route",))

    def grown() -> dict[str, float]:
        after = _counts(server.metrics_url, "equipoise_calibration_rank_count")
        return {key: count - before.get(key, 0.0) for key, count in after.items() if f'model="{model}"' in key}

    poll(lambda: set(grown().values()) == {2.0}, "both cases are counted")
    assert {re.search('number="(.*?)"', labels)[1] for labels in grown()} == watched
    assert any(f'model="{model}"' in labels for labels in _counts(server.metrics_url, "equipoise_audits_total"))
