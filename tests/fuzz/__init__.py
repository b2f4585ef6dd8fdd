"""Coverage-guided fuzzing of everything that reads bytes which are not the agent's own: docs/fuzz.md."""
