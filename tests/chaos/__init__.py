"""Faults on the agent itself: killed, stopped, starved, flooded and lied to, beside a worker that must not notice.

``python -m tests.chaos`` runs them. The list of them is the folder ``faults/``: one file each, named as the fault.
"""
