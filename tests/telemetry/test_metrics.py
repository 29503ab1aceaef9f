"""Metrics, read back with Prometheus's own parser."""

import os
import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from tokenworks.fleet.pool import WorkerStatus
from tokenworks.fleet.supervisor import Phase
from tokenworks.protocol.messages import EngineStats, Finish
from tokenworks.telemetry.metrics import Metrics


def read(metrics: Metrics, workers=()) -> dict[tuple[str, ...], float]:
    """(sample name, label values in order of their names) -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition(workers).decode())
        for sample in family.samples
    }


def test_latencies_of_one_request():
    metrics = Metrics()
    request = metrics.request("m", now_s=100.0)
    request.tokens(0, 100.1)
    request.tokens(1, 100.2)
    request.tokens(1, 100.206)
    request.tokens(4, 100.246)
    request.end(Finish.STOP, 100.25)
    samples = read(metrics)
    name = "tokenworks_time_to_first_token_seconds"
    assert samples[name + "_count", "m"] == 1
    assert abs(samples[name + "_sum", "m"] - 0.2) < 1e-9
    assert (samples[name + "_bucket", "0.1", "m"], samples[name + "_bucket", "0.25", "m"]) == (0, 1)
    name = "tokenworks_inter_token_latency_seconds"
    assert samples[name + "_count", "m"] == 5
    assert abs(samples[name + "_sum", "m"] - 0.046) < 1e-9
    assert samples[name + "_bucket", "0.005", "m"] == 0
    assert samples[name + "_bucket", "0.0075", "m"] == 1
    assert samples[name + "_bucket", "+Inf", "m"] == 5
    assert abs(samples["tokenworks_request_duration_seconds_sum", "m"] - 0.25) < 1e-9
    assert samples["tokenworks_requests_total", "stop", "m"] == 1
    assert samples["tokenworks_requests_total", "failed", "m"] == 0


def test_a_bound_belongs_to_its_bucket():
    metrics = Metrics()
    metrics.request("m", 0.0).tokens(1, 0.25)
    samples = read(metrics)
    assert samples["tokenworks_time_to_first_token_seconds_bucket", "0.1", "m"] == 0
    assert samples["tokenworks_time_to_first_token_seconds_bucket", "0.25", "m"] == 1


def test_workers():
    stats = EngineStats(
        running=3,
        waiting=2,
        kv_blocks_used=25,
        kv_blocks_cached=50,
        kv_blocks_total=100,
        prompt_tokens_total=1000,
        prefix_hit_tokens_total=400,
        output_tokens_total=77,
        preemptions_total=1,
        steps_total=9,
        draft_tokens_total=40,
        draft_tokens_accepted_total=30,
        expert_bytes_total=200,
        expert_bytes_resident_total=150,
        expert_bytes_kept=70,
    )
    workers = [
        WorkerStatus("m", Phase.READY, os.getpid(), 2, 5, stats),
        WorkerStatus("encoder", Phase.OFF, None, 0, 0, EngineStats()),
    ]
    samples = read(Metrics(), workers)
    got = {name.removeprefix("tokenworks_"): value for (name, *labels), value in samples.items() if labels == ["m"]}
    assert got.pop("process_resident_memory_bytes") > 1_000_000
    assert got == {
        "worker_up": 1,
        "worker_restarts_total": 2,
        "expert_bytes_total": 200,
        "expert_bytes_resident_total": 150,
        "expert_bytes_kept": 70,
        "pictures_encoded_total": 0,
        "requests_in_flight": 5,
        "requests_running": 3,
        "requests_waiting": 2,
        "kv_cache_used_ratio": 0.25,
        "kv_cache_cached_ratio": 0.5,
        "prompt_tokens_total": 1000,
        "prefix_cache_hit_tokens_total": 400,
        "output_tokens_total": 77,
        "preemptions_total": 1,
        "engine_steps_total": 9,
        "draft_tokens_total": 40,
        "draft_tokens_accepted_total": 30,
    }
    assert samples["tokenworks_worker_up", "encoder"] == 0
    assert ("tokenworks_kv_cache_used_ratio", "encoder") not in samples, "it has no cache"
    assert ("tokenworks_process_resident_memory_bytes", "encoder") not in samples, "it has no process"
    assert samples["tokenworks_process_resident_memory_bytes", "gateway"] > 1_000_000


def test_observing_loads_no_library():
    program = """
import sys
from tokenworks.protocol.messages import Finish
from tokenworks.telemetry.metrics import Metrics
request = Metrics().request("m", 0.0)
request.tokens(1, 1.0)
request.end(Finish.STOP, 2.0)
assert "prometheus_client" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
