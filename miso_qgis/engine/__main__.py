"""Entry point of ``python -m miso_qgis.engine``."""

import sys

from .cli import main

sys.exit(main())
