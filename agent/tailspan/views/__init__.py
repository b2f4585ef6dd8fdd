"""Stage 5: text and JSON from data. Pure: no clock, no file, no terminal; the width and the colours are given."""
