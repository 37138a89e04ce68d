"""Helpers at the top serve all folders, and one folder's tests those of another; hypothesis has no time limit for each
example: machines that are shared are slow now and then."""

import sys
from pathlib import Path

from hypothesis import settings

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(place) for place in sorted(HERE.iterdir()) if place.is_dir())]

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
