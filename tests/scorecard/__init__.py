"""The scorecard: real faults beside a real worker under load, and how often the verdict names them.

``make scorecard`` runs it. A fault is one file under ``faults/``; to add one, copy the nearest and change it.
"""
