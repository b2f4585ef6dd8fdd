"""OTLP out: slow requests as spans, and what workers have sent to the agent's receiver.

::

    VerdictExporter --spans, encoded--+
    receiver --as it came-------------+--> Outlets --> Spool --> Breaker --> Transport --> backend
    metrics --encoded-----------------+                (disk)

What reaches the spool leaves once the backend takes it, through outages and restarts, or is counted. A batch that
was on its way when the agent was killed may arrive twice: its spans have the same ids both times.
"""

from tailspan.export.otlp.outlet import OutletStats
from tailspan.export.otlp.outlets import Outlets
from tailspan.export.otlp.transport import configured
from tailspan.export.otlp.verdicts import VerdictExporter

__all__ = ["OutletStats", "Outlets", "VerdictExporter", "configured"]
