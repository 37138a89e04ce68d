"""`python -m noisycorr` is `noisycorr`."""

import sys

from noisycorr.cli import main

sys.exit(main())
