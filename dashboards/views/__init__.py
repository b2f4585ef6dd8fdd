"""One module a dashboard."""

from __future__ import annotations

from dashboards.panels import View
from dashboards.views import agent, fleet, gpu, host, requests

VIEWS: tuple[View, ...] = (requests.VIEW, host.VIEW, gpu.VIEW, agent.VIEW, fleet.VIEW)
