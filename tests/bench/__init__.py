"""What the agent costs, measured against a machine on which it is absent. ``python -m tests.bench``

One module per question. Each has ``run(quick)``, which measures and gives plain JSON, and ``render(figures)``,
which turns that JSON into a section of ``docs/overhead.md``. Units are in the keys.
"""
