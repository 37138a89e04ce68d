"""Hypothesis without a time limit for each example: machines that are shared are slow now and then."""

from hypothesis import settings

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
