"""``python -m kvengine`` is the command ``kvengine``."""

import sys

from kvengine.cli import main

sys.exit(main())
