"""Stage 2: what each thread and each request did. Canonical tables, bounded and columnar."""
