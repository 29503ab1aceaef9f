"""What Prometheus is told: latencies that the gateway observes, and the workers' own counts.

Observing costs a bisection and an addition, and needs no library; prometheus_client is loaded by the first scrape.
The workers' totals begin anew with each process, as Prometheus expects of a counter that restarts.
"""

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tokenworks.protocol.messages import EngineStats, Finish

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FIRST_TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
INTER_TOKEN_BOUNDS_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
REQUEST_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class WorkerReading(Protocol):
    """What is read of each worker at a scrape (fleet.pool.WorkerStatus)."""

    @property
    def name(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def restarts(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def stats(self) -> EngineStats: ...


class Histogram:
    """Counts by upper bound, in seconds."""

    __slots__ = ("bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, value_s: float, count: int = 1) -> None:
        """`count` observations of the same value."""
        self.counts[bisect_left(self.bounds_s, value_s)] += count
        self.sum_s += value_s * count

    def cumulative(self) -> list[tuple[str, float]]:
        """(bound, observations up to it), the last bound "+Inf"."""
        total = 0
        buckets = []
        for bound, count in zip((*map(str, self.bounds_s), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


@dataclass(slots=True)
class _ModelMetrics:
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS_S))
    inter_token: Histogram = field(default_factory=lambda: Histogram(INTER_TOKEN_BOUNDS_S))
    request: Histogram = field(default_factory=lambda: Histogram(REQUEST_BOUNDS_S))
    finishes: Counter[str] = field(default_factory=Counter)


class RequestMetrics:
    """One sequence's way through: `tokens` whenever some come, then `end`, once. A request for embeddings is one."""

    __slots__ = ("_last_s", "_model", "_started_s")

    def __init__(self, model: _ModelMetrics, now_s: float) -> None:
        self._model = model
        self._started_s = now_s
        self._last_s: float | None = None

    def tokens(self, count: int, now_s: float) -> None:
        """`count` tokens have come together; none is no news. Tokens that share a step share its time."""
        if not count:
            return
        if self._last_s is None:
            self._model.first_token.observe(now_s - self._started_s)
        else:
            self._model.inter_token.observe((now_s - self._last_s) / count, count)
        self._last_s = now_s

    def end(self, finish: Finish, now_s: float) -> None:
        """However it ended."""
        self._model.finishes[finish.value] += 1
        self._model.request.observe(now_s - self._started_s)


class Metrics:
    """All of a factory's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self._models: dict[str, _ModelMetrics] = {}

    def request(self, model: str, now_s: float) -> RequestMetrics:
        """A sequence begins. `model` is one that is served: its name becomes a label."""
        metrics = self._models.get(model)
        if metrics is None:
            metrics = self._models[model] = _ModelMetrics()
        return RequestMetrics(metrics, now_s)

    def exposition(self, workers: Iterable[WorkerReading]) -> bytes:
        """The text that a scrape gets, CONTENT_TYPE."""
        from prometheus_client import CollectorRegistry, generate_latest

        readings = list(workers)
        collected = [*self._latencies(), *_worker_metrics(readings), _memory(readings)]

        class Collector:
            def collect(self) -> "Iterable[Metric]":
                return collected

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collector())
        return generate_latest(registry)

    def _latencies(self) -> "Iterable[Metric]":
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        first_token = HistogramMetricFamily(
            "tokenworks_time_to_first_token_seconds", "From a request's arrival to its first token.", labels=["model"]
        )
        inter_token = HistogramMetricFamily(
            "tokenworks_inter_token_latency_seconds", "From one token to the next.", labels=["model"]
        )
        request = HistogramMetricFamily(
            "tokenworks_request_duration_seconds", "From a request's arrival to its end.", labels=["model"]
        )
        finishes = CounterMetricFamily(
            "tokenworks_requests",
            "Sequences and embedding requests ended, by how.",
            labels=["model", "finish"],
        )
        for name, metrics in self._models.items():
            first_token.add_metric([name], metrics.first_token.cumulative(), metrics.first_token.sum_s)
            inter_token.add_metric([name], metrics.inter_token.cumulative(), metrics.inter_token.sum_s)
            request.add_metric([name], metrics.request.cumulative(), metrics.request.sum_s)
            for finish in Finish:
                finishes.add_metric([name, finish.value], metrics.finishes[finish.value])
        return first_token, inter_token, request, finishes


def _worker_metrics(readings: list[WorkerReading]) -> "Iterable[Metric]":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def gauge(name: str, help_text: str, values: dict[str, float]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"tokenworks_{name}", help_text, labels=["model"])
        for model, value in values.items():
            family.add_metric([model], value)
        return family

    def counter(name: str, help_text: str, values: dict[str, float]) -> CounterMetricFamily:
        family = CounterMetricFamily(f"tokenworks_{name}", help_text, labels=["model"])
        for model, value in values.items():
            family.add_metric([model], value)
        return family

    stats = {reading.name: reading.stats for reading in readings}
    paged = {name: s for name, s in stats.items() if s.kv_blocks_total}
    stateful = {name: s for name, s in stats.items() if s.state_slots_total}
    return (
        gauge("worker_up", "1 when the worker is ready.", {r.name: float(r.phase == "ready") for r in readings}),
        counter("worker_restarts", "Starts after a death.", {r.name: r.restarts for r in readings}),
        gauge("requests_in_flight", "Sequences that have not ended.", {r.name: r.in_flight for r in readings}),
        gauge("requests_running", "Sequences in the running batch.", {n: s.running for n, s in stats.items()}),
        gauge("requests_waiting", "Sequences that wait for a place.", {n: s.waiting for n, s in stats.items()}),
        gauge(
            "kv_cache_used_ratio",
            "Part of the KV cache that running sequences hold.",
            {n: s.kv_blocks_used / s.kv_blocks_total for n, s in paged.items()},
        ),
        gauge(
            "kv_cache_cached_ratio",
            "Part of the KV cache that only the prefix cache holds.",
            {n: s.kv_blocks_cached / s.kv_blocks_total for n, s in paged.items()},
        ),
        gauge(
            "state_slots_used_ratio",
            "Part of the slots for recurrent states that running sequences hold.",
            {n: s.state_slots_used / s.state_slots_total for n, s in stateful.items()},
        ),
        gauge(
            "state_slots_cached_ratio",
            "Part of the slots for recurrent states that are snapshots of the prefix cache.",
            {n: s.state_slots_cached / s.state_slots_total for n, s in stateful.items()},
        ),
        counter(
            "prompt_tokens",
            "Prompt tokens taken on; all are looked up in the prefix cache.",
            {n: s.prompt_tokens_total for n, s in stats.items()},
        ),
        counter(
            "prefix_cache_hit_tokens",
            "Prompt tokens that came from the prefix cache.",
            {n: s.prefix_hit_tokens_total for n, s in stats.items()},
        ),
        counter("output_tokens", "Tokens made.", {n: s.output_tokens_total for n, s in stats.items()}),
        counter(
            "preemptions",
            "Sequences put back to make room in the KV cache.",
            {n: s.preemptions_total for n, s in stats.items()},
        ),
        counter("engine_steps", "Steps run.", {n: s.steps_total for n, s in stats.items()}),
        counter(
            "pictures_encoded",
            "Pictures' tiles that were encoded, not found in the cache.",
            {n: s.pictures_encoded_total for n, s in stats.items()},
        ),
        counter(
            "expert_bytes",
            "Bytes of experts that tokens chose, of models that do not fit into memory.",
            {n: s.expert_bytes_total for n, s in stats.items()},
        ),
        counter(
            "expert_bytes_resident",
            "Those that were in memory when they were chosen; the others were read.",
            {n: s.expert_bytes_resident_total for n, s in stats.items()},
        ),
        gauge(
            "expert_bytes_kept",
            "Memory that those used most take now.",
            {n: s.expert_bytes_kept for n, s in stats.items()},
        ),
        counter("draft_tokens", "Guessed tokens run.", {n: s.draft_tokens_total for n, s in stats.items()}),
        counter(
            "draft_tokens_accepted",
            "Guessed tokens that proved right: each saved a step of its sequence.",
            {n: s.draft_tokens_accepted_total for n, s in stats.items()},
        ),
    )


def _memory(readings: list[WorkerReading]) -> "Metric":
    import psutil
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(
        "tokenworks_process_resident_memory_bytes", "Memory of the gateway and of each worker.", labels=["process"]
    )
    processes: list[tuple[str, int | None]] = [("gateway", os.getpid()), *((r.name, r.pid) for r in readings)]
    for name, pid in processes:
        if pid is not None:
            try:
                family.add_metric([name], psutil.Process(pid).memory_info().rss)
            except psutil.NoSuchProcess:
                continue  # it died since; the next scrape sees its successor
    return family
