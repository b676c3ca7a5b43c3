"""What Prometheus reads of a server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from tagsmith.deployment.classifying import About, Result

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_LABELS = 100
"""Labels that are counted by name; all beyond them are counted together as `other`."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        disable_created_metrics()  # when a series began says its own counter; this would double their number
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"tagsmith_{name}", told, labels, registry=registry)

        def histogram(name: str, told: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"tagsmith_{name}", told, labels, buckets=buckets, registry=registry)

        def gauge(name: str, told: str, *labels: str) -> Gauge:
            return Gauge(f"tagsmith_{name}", told, labels, registry=registry)

        self.requests = counter("requests_total", "Requests by route and status.", "route", "code")
        self.request_seconds = histogram("request_duration_seconds", "Seconds of a request.", _SECONDS, "route")
        self.queue_seconds = histogram("queue_duration_seconds", "Seconds that a text waited for its batch.", _SECONDS)
        self.tokenize_seconds = histogram("tokenize_duration_seconds", "Seconds of encoding a request.", _SECONDS)
        self.inference_seconds = histogram("inference_duration_seconds", "Seconds of computing a batch.", _SECONDS)
        self.batch_texts = histogram("batch_texts", "Texts of a batch.", _COUNTS)
        self.batch_tokens = histogram("batch_tokens", "Tokens of a batch, without padding.", _TOKENS)
        self.batch_padding = histogram(
            "batch_padding_ratio", "Share of padding in the rectangle around a batch.", _SHARES
        )
        self.queue_texts = gauge("queue_texts", "Texts that wait.")
        self.queue_tokens = gauge("queue_tokens", "Tokens that wait.")
        self.rejected = counter("rejected_total", "Requests that were not answered, by reason.", "reason")
        self.truncated = counter("truncated_texts_total", "Texts that were not read whole.")
        self.unknown = counter("unknown_char_texts_total", "Texts with letters that the tokenizer does not know.")
        self.predictions = counter("predictions_total", "Answers by label.", "label")
        self.abstained = counter("abstained_texts_total", "Texts whose likeliest label was not likely enough.")
        self.confidence = histogram("confidence", "Probability of the likeliest label.", _SHARES)
        self.nonfinite = counter("nonfinite_total", "Texts whose answer was no finite number.")
        self.model_info = gauge(
            "model_info", "The bundle that answers.", "name", "version", "sha256", "backend", "dtype"
        )
        self.ready = gauge("ready", "Whether requests are answered.")
        self.reloads = counter("reload_total", "Reloads by result.", "result")
        self.restarts = counter("engine_restarts_total", "Engine processes that came back after a death.")
        self.compared = counter("shadow_compared_total", "Texts that two bundles answered, by role.", "role")
        self.disagreed = counter("shadow_disagreement_total", "Those whose labels differed, by role.", "role")
        for reason in ("queue_full", "deadline", "disconnect", "draining", "too_long", "not_ready", "engine_lost"):
            self.rejected.labels(reason)

    def show_model(self, about: About) -> None:
        """Name the bundle that answers from now on."""
        self.model_info.clear()
        backend, _, dtype = about.engine.partition("-")
        self.model_info.labels(about.name, about.version, about.digest, backend, dtype or "fp32").set(1)

    def count_results(self, about: About, results: Sequence[Result]) -> None:
        """Count what was answered."""
        counted = frozenset(about.labels[:MOST_LABELS])
        for result in results:
            for label in result.labels:
                self.predictions.labels(label if label in counted else "other").inc()
            self.confidence.observe(float(result.probs_C.max()))
        self.truncated.inc(sum(result.truncated for result in results))
        self.abstained.inc(sum(result.abstained for result in results))

    def text(self) -> bytes:
        """Everything in Prometheus' own format."""
        return generate_latest(self.registry)
