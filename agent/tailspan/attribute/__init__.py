"""Stage 3: why. Pure functions of tables: no clock, no file, no socket, no log call."""
