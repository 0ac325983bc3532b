"""A canary: which share of the traffic is reached by how many pods, and whether its metrics let it take over.

Traffic metrics tell whether the service works. They do not judge the quality of a model: docs/aks.md.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ml_service.config import AksSettings, Settings
from ml_service.errors import UnavailableError, UnhealthyError, UsageError
from ml_service.http_session import session_for
from ml_service.ports import Progress
from ml_service.targets.aks.client import Cluster, Object
from ml_service.targets.aks.deployment import CANARY, STABLE, read_version
from ml_service.targets.aks.port_forward import forwarded

SHARE, BASELINE = "mlops/canary-percent", "mlops/canary-baseline"
READY = "mlops/canary-ready"
"""Written last, when the share is reached: without it the start of the canary is under way, or was killed."""

TOLERANCE = 5.0
"""Points that the share reached may differ from the one asked for."""

_NEAR_ENOUGH = 2.0
"""Points of difference for which no further pod is spent."""

SLOWDOWN = 1.5
"""How much the candidate's 95th percentile may exceed that of the serving version; more has to be no chance, too."""

_CHANCE = 0.01
"""A difference that equal versions would show less often than this is no chance."""

_PORT = 8080
_REQUESTS = re.compile(r'^scoring_requests_total\{route="score",status="(\d+)"\} (\S+)$', re.MULTILINE)
_BUCKET = re.compile(r'^scoring_request_duration_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Share:
    """Numbers of pods. Each pod gets the same part of the traffic, so they are the share, unless ``weight`` is."""

    stable: int
    canary: int
    weight: int | None = None

    @property
    def total(self) -> int:
        """All pods."""
        return self.stable + self.canary

    @property
    def percent(self) -> float:
        """What the candidate gets."""
        return self.weight if self.weight is not None else 100 * self.canary / self.total


def share(percent: int, aks: AksSettings) -> Share:
    """The fewest pods that come near ``percent``, within the limits of the settings.

    Raises:
        UsageError: ``percent`` is no share, or is missed by more than TOLERANCE points.
    """
    _check(percent)
    possible = [
        Share(stable, canary)
        for stable in range(aks.min_replicas, aks.max_replicas)
        for canary in range(1, aks.max_replicas - stable + 1)
    ]
    if not possible:
        raise UsageError(
            "leaves no pod for a canary",
            where=f"AKS_MAX_REPLICAS={aks.max_replicas}",
            next_step="set AKS_MAX_REPLICAS to more than AKS_MIN_REPLICAS",
        )
    best = min(possible, key=lambda one: (max(0.0, abs(one.percent - percent) - _NEAR_ENOUGH), one.total))
    if abs(best.percent - percent) > TOLERANCE:
        raise UsageError(
            f"with at most {aks.max_replicas} pods the nearest to {percent} % is {best.percent:.1f} %",
            where="--canary",
            next_step=f"set AKS_MAX_REPLICAS higher, or use --canary {round(best.percent)}",
        )
    return best


def weighted(percent: int, stable: int, aks: AksSettings) -> Share:
    """Exactly ``percent``, by a route's weights; the candidate gets pods for it beside the ``stable`` ones.

    It gets one at least, and no more than AKS_MAX_REPLICAS has left.

    Raises:
        UsageError: ``percent`` is no share.
    """
    _check(percent)
    wanted = math.ceil(stable * percent / 100)
    return Share(stable, max(1, min(wanted, aks.max_replicas - stable)), weight=percent)


def _check(percent: int) -> None:
    if not 1 <= percent <= 99:
        raise UsageError("a canary gets from 1 to 99 %", where="--canary", next_step="use such as --canary 10")


@dataclass(frozen=True)
class Traffic:
    """What pods counted: requests but for clients' mistakes (4xx), failures (5xx) among them, and the latency histogram
    (cumulative counts by upper bound, s), which holds what was scored."""

    requests: float = 0
    failures: float = 0
    buckets: Mapping[float, float] = field(default_factory=dict)

    def __add__(self, other: Traffic) -> Traffic:
        return self._combined(other, 1)

    def __sub__(self, other: Traffic) -> Traffic:
        """What was counted since ``other``; all of it, when the pod was started again and counts from the beginning."""
        found = self._combined(other, -1)
        return self if min(found.requests, found.failures, *found.buckets.values()) < 0 else found

    def _combined(self, other: Traffic, sign: int) -> Traffic:
        buckets = Counter(self.buckets)
        for bound, count in other.buckets.items():
            buckets[bound] += sign * count  # type: ignore[assignment]
        return Traffic(
            self.requests + sign * other.requests, self.failures + sign * other.failures, dict(sorted(buckets.items()))
        )

    @property
    def timed(self) -> float:
        """Requests in the histogram."""
        return max(self.buckets.values(), default=0.0)

    def quantile(self, q: float) -> float:
        """An estimate of the latency's quantile, in seconds, linear inside a bucket."""
        total = self.timed
        lower, below = 0.0, 0.0
        for bound, count in self.buckets.items():
            if total and count >= q * total:
                if math.isinf(bound):
                    return lower
                part = (q * total - below) / (count - below) if count > below else 1.0
                return lower + part * (bound - lower)
            lower, below = bound, count
        return lower

    def slower_than(self, bound: float) -> float:
        """How many requests took longer than a bucket's bound."""
        return self.timed - self.buckets.get(bound, 0.0)


def parse(exposition: str) -> Traffic:
    """What one pod's /metrics says about scoring requests."""
    by_status = [(int(status), float(count)) for status, count in _REQUESTS.findall(exposition)]
    return Traffic(
        requests=sum(count for status, count in by_status if not 400 <= status < 500),
        failures=sum(count for status, count in by_status if status >= 500),
        buckets={float(bound.replace("+Inf", "inf")): float(count) for bound, count in _BUCKET.findall(exposition)},
    )


def verdict(stable: Traffic, canary: Traffic, least: int) -> tuple[bool | None, str]:
    """Whether the candidate may take over (None: undecided), and why."""
    counted = f"{canary.requests:.0f} requests to the candidate, {stable.requests:.0f} to the serving version"
    undecided = f"undecided: {counted}; {least} of each are needed"
    if min(canary.requests, stable.requests) < least:
        return None, undecided
    failed = f"{canary.failures:.0f} against {stable.failures:.0f} failures"
    if _chance(stable.failures, stable.requests, canary.failures, canary.requests) < _CHANCE:
        return False, f"the candidate fails more often: {failed} ({counted})"
    if min(canary.timed, stable.timed) < least:
        return None, undecided
    slow, usual = canary.quantile(0.95), stable.quantile(0.95)
    times = f"95th percentile {1000 * slow:.2f} ms against {1000 * usual:.2f} ms"
    if slow <= SLOWDOWN * usual:
        return True, f"no worse: {times}, {failed} ({counted})"
    # A few requests that had to wait move a percentile a long way, and inside a bucket it is a guess: more of them must
    # have taken longer than a bound at which both versions count.
    bound = max((one for one in canary.buckets.keys() & stable.buckets.keys() if one <= slow), default=0.0)
    if _chance(stable.slower_than(bound), stable.timed, canary.slower_than(bound), canary.timed) < _CHANCE:
        return False, f"the candidate is slower: {times} ({counted})"
    return True, f"slower by no more than chance may do: {times}, {failed} ({counted})"


def _chance(usual: float, of_usual: float, seen: float, of_seen: float) -> float:
    """How likely it is that ``seen`` or more of the second number of requests are hit when ``usual`` of the first are,
    were both alike: Fisher's exact test, one-sided."""
    first, second, hits = round(of_usual), round(of_seen), round(usual) + round(seen)
    whole = _log_ways(first + second, hits)
    possible = range(max(round(seen), hits - first), min(second, hits) + 1)
    return sum(math.exp(_log_ways(second, k) + _log_ways(first, hits - k) - whole) for k in possible)


def _log_ways(size: int, some: int) -> float:
    """The logarithm of how many ways there are to choose ``some``."""
    return math.lgamma(size + 1) - math.lgamma(some + 1) - math.lgamma(size - some + 1)


def baseline(cluster: Cluster, settings: Settings, key: str) -> str:
    """What each pod of the serving version has counted by now, as JSON: only what comes after it is compared."""
    counted = _by_pod(cluster, settings, STABLE, key)
    return json.dumps({pod: [one.requests, one.failures, _listed(one.buckets)] for pod, one in counted.items()})


def judge(cluster: Cluster, settings: Settings, canary: Object, key: str, progress: Progress) -> None:
    """Compare what both versions' pods have counted since the canary began.

    Raises:
        UnavailableError: there were too few requests to decide.
        UnhealthyError: the candidate is worse, or one of its pods crashed; it stays a canary.
    """
    _refuse_crashed(cluster, settings, canary)
    raw = json.loads(canary["metadata"]["annotations"].get(BASELINE, "{}"))
    before = {pod: Traffic(one[0], one[1], {float(b): n for b, n in one[2]}) for pod, one in raw.items()}
    now = _by_pod(cluster, settings, STABLE, key)
    stable = _sum(one - before.get(pod, Traffic()) for pod, one in now.items())
    candidate = _sum(_by_pod(cluster, settings, CANARY, key).values())
    accepted, why = verdict(stable, candidate, settings.aks.canary_min_requests)
    progress(why)
    if accepted is None:
        raise UnavailableError(
            why, where="target aks", next_step="wait for more traffic, or lower --min-requests; the canary goes on"
        )
    if not accepted:
        version = read_version(canary)
        raise UnhealthyError(why, where=f"canary of {version}", next_step="end it: inv rollback --target aks")


def _refuse_crashed(cluster: Cluster, settings: Settings, canary: Object) -> None:
    """A process that ended took its counts with it, and whoever was waiting for an answer got none."""
    for pod in _pods(cluster, settings, CANARY):
        if restarts := sum(one.get("restartCount", 0) for one in pod["status"].get("containerStatuses", [])):
            raise UnhealthyError(
                f"pod {pod['metadata']['name']} restarted (restarts: {restarts}), so its process had ended",
                where=f"canary of {read_version(canary)}",
                next_step="see inv logs --target aks, and end it: inv rollback --target aks",
            )


def _listed(buckets: Mapping[float, float]) -> Sequence[tuple[str, float]]:
    return [(str(bound), count) for bound, count in buckets.items()]


def _sum(parts: Iterable[Traffic]) -> Traffic:
    return sum(parts, Traffic())


def _by_pod(cluster: Cluster, settings: Settings, track: str, key: str) -> dict[str, Traffic]:
    pods = [pod for pod in _pods(cluster, settings, track) if pod["status"].get("phase") == "Running"]
    return {name: _ask(cluster, name, key) for pod in pods if (name := pod["metadata"]["name"])}


def _pods(cluster: Cluster, settings: Settings, track: str) -> Sequence[Object]:
    selector = f"app.kubernetes.io/name={settings.aks.name},mlops/track={track}"
    found = cluster.list("v1", "Pod", labelSelector=selector)
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def _ask(cluster: Cluster, pod: str, key: str) -> Traffic:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with forwarded(cluster, pod, _PORT) as url, session_for(url) as session:
            answer = session.get(f"{url}/metrics", headers=headers, timeout=15)
            answer.raise_for_status()
            return parse(answer.text)
    except OSError as error:
        raise UnavailableError(
            f"its metrics cannot be read ({error})", where=f"pod {pod}", next_step="see: inv logs --target aks"
        ) from None
