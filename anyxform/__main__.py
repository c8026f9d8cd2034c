"""``python -m anyxform`` is the command `anyxform`."""

import sys

from anyxform.cli import main

sys.exit(main())
