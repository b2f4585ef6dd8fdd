"""Stage 1: facts in, as numpy batches. One module per source; privileged and heavy imports live only here."""
