"""`noisycorr` of which rank 1 is killed when it starts its first piece. Run by torchrun."""

from __future__ import annotations

import os
import signal
import sys

from noisycorr.__main__ import main
from noisycorr.clean import embed

if os.environ["RANK"] == "1":
    embed.embed_piece = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main(sys.argv[1:]))
