"""What the agent costs, by its own measure: itself, the worker, and what it gives up when that is too much."""
