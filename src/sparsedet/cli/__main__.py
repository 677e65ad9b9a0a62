"""`python -m sparsedet.cli`, as 0.1's documents called it; `python -m sparsedet` is the same."""

import sys

from . import main

sys.exit(main())
