"""``python -m tailspan``."""

import sys

from tailspan.cli import main

sys.exit(main())
