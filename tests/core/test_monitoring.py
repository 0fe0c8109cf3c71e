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
    ("value", "rank"), [(-1.0, -0.05), (0.0, 0.05), (0.5, 0.05), (1.5, 0.15), (9.5, 0.95), (10.0, 0.95), (10.1, 1.05)]
)
def test_a_rank_is_the_tenth_of_the_calibration_cases(value, rank):
    """Below, inside and above the range that was seen; nothing for a name that was not."""
    watched = Monitoring(0.1, {"s": TENTHS})
    assert watched.rank("s", value, "00" * 32) == pytest.approx(rank)
    assert watched.rank("unknown", value, "00" * 32) is None


def test_calibration_cases_themselves_fill_every_tenth_alike():
    """Without drift the histogram is flat: that is what an alarm compares with."""
    cases = np.random.default_rng(0).gamma(2.0, size=2000)
    counts = tenths(cases)
    assert max(counts) - min(counts) <= 2


@pytest.mark.parametrize("tied", [0.0, 1.0, 9.0])
def test_a_number_that_many_cases_share_is_no_drift(tied):
    """As where two of five images show nothing: they fill the tenths that they are, as far as quantiles tell."""
    cases = np.concatenate([np.random.default_rng(0).uniform(0, 9, size=1200), np.full(800, tied)])
    below = np.cumsum(tenths(cases)) / len(cases)
    assert np.abs(below - np.arange(1, 11) / 10).max() < 0.1 + 1e-9


def tenths(cases):
    """How many of the calibration cases themselves fall into each tenth."""
    watched = Monitoring(0.1, {"s": tuple(np.quantile(cases, np.linspace(0, 1, 11)).tolist())})
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(len(cases))]
    ranks = [watched.rank("s", case, digest) for case, digest in zip(cases, digests, strict=True)]
    assert all(0.0 < rank < 1.0 for rank in ranks)
    return [sum(abs(rank - middle) < 0.01 for rank in ranks) for middle in np.arange(0.05, 1.0, 0.1)]


def test_documents_round_trip_and_refuse():
    """A share above 1 and quantiles that fall are refused."""
    watched = Monitoring(0.1, {"s": TENTHS})
    assert parse_monitoring(watched.document()) == watched
    with pytest.raises(ValueError, match="between 0 and 1"):
        Monitoring(1.5, {})
    with pytest.raises(ValueError, match="expected rate of referred"):
        Monitoring(0.1, {}, {"referred": 1.2})
    with pytest.raises(ValueError, match="rising"):
        Monitoring(0.1, {"s": TENTHS[::-1]})
