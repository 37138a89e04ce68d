"""noisycorr: which image-text pairs are wrong, how sure we are, and what to do about it."""

__version__ = "0.1.0"
