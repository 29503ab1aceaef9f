"""`python -m tokenworks` is `tokenworks`."""

import sys

from tokenworks.cli import main

sys.exit(main())
