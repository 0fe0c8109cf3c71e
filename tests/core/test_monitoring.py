import hashlib

import numpy as np
import pytest
from equipoise_core.monitoring import Monitoring, parse_monitoring

TENTHS = tuple(float(tenth) for tenth in range(11))


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_the_share_of_marked_cases_is_the_policys(share):
    """Of 4000 digests, and always the same ones."""
    watched = Monitoring(share, {})
    digests = [hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(4000)]
    marked = [watched.audits(digest) for digest in digests]
    assert np.mean(marked) == pytest.approx(share, abs=3.3 * (share * (1 - share) / 4000) ** 0.5)
    assert marked == [watched.audits(digest) for digest in digests]


@pytest.mark.parametrize(
    ("value", "rank"), [(-1.0, -0.05), (0.5, 0.05), (1.5, 0.15), (9.5, 0.95), (10.0, 0.95), (10.1, 1.05)]
)
def test_a_rank_is_the_tenth_of_the_calibration_cases(value, rank):
    """Below, inside and above the range that was seen; nothing for a name that was not."""
    watched = Monitoring(0.1, {"s": TENTHS})
    assert watched.rank("s", value) == pytest.approx(rank)
    assert watched.rank("unknown", value) is None


def test_calibration_cases_themselves_fill_every_tenth_alike():
    """Without drift the histogram is flat: that is what an alarm compares with."""
    cases = np.random.default_rng(0).gamma(2.0, size=2000)
    watched = Monitoring(0.1, {"s": tuple(np.quantile(cases, np.linspace(0, 1, 11)).tolist())})
    ranks = [watched.rank("s", case) for case in cases[1:]]
    counts = [sum(abs(rank - middle) < 0.01 for rank in ranks) for middle in np.arange(0.05, 1.0, 0.1)]
    assert max(counts) - min(counts) <= 2


def test_documents_round_trip_and_refuse():
    """A share above 1 and quantiles that fall are refused."""
    watched = Monitoring(0.1, {"s": TENTHS})
    assert parse_monitoring(watched.document()) == watched
    with pytest.raises(ValueError, match="between 0 and 1"):
        Monitoring(1.5, {})
    with pytest.raises(ValueError, match="rising"):
        Monitoring(0.1, {"s": TENTHS[::-1]})
