"""tailspan: why was THIS request slow?"""

__version__ = "0.1.0"
