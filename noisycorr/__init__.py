"""noisycorr: which image-text pairs are wrong, how sure we are, and what to do about it."""

from noisycorr.runtime.version import __version__ as __version__
