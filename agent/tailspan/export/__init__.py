"""Stage 4: out. Names in ``semconv``; ``otlp``, ``prometheus`` and ``local`` (segments) carry them.

An exporter never blocks and never raises into the pipeline: what it cannot deliver, it counts by reason.
"""
