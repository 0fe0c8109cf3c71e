"""What the policy guarantees, rule by rule."""

from __future__ import annotations

from collections.abc import Iterator

from equipoise_core.policy import Policy

from .findings import Findings, rendered


def promises(found: Findings) -> str:
    """Each rule in the policy's own words."""
    listed = list(guarantees(found.policy, found.why))
    return rendered("promises", population=found.policy.population, guarantees=listed)


def guarantees(policy: Policy, why: str) -> Iterator[tuple[str, str]]:
    """(what, in words) of every rule."""
    yield "accept", why
    if policy.despite:
        yield "in spite of", policy.despite
    yield "reject for what the input looks like", policy.suitable.rule
    yield f"review for unusual {', '.join(policy.typical.limits)}", policy.typical.rule
    if policy.volume:
        yield "volume intervals", policy.volume.rule
    if policy.interval:
        each = ", ".join(f"{rule.tolerance:g} ({name})" for name, rule in policy.interval.targets.items())
        yield "intervals of numbers", f"{policy.interval.rule}: {each}"
    if policy.sensitive:
        yield "sensitive labels", policy.sensitive.rule
    elif policy.volume:  # of a segmentation
        yield "sensitive labels", "none: too few cases with foreground, or only a threshold of 0 misses so little"
    if policy.outline:
        yield "outline", policy.outline.rule
    if policy.monitoring:
        share = policy.monitoring.audit_share
        yield ("audits", f"{share:.0%} of accepted cases are marked at random, for `equipoise audit monitor`")
