"""Write the API reference as HTML, from the docstrings: `python docs/reference.py FOLDER`.

Needs pdoc: `pip install "noisycorr[docs]"`. FOLDER/index.html is the first page.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pdoc

import noisycorr


def pages() -> list[str]:
    """The modules to document: the front door, and the modules of functions that it names, such as `losses`."""
    modules = {}
    for name in noisycorr.__all__:
        value = getattr(noisycorr, name)
        if isinstance(value, types.ModuleType) and hasattr(value, "__wrapped__"):
            # `nc.clean` is a package that can be called. pdoc would show the package; readers want the function. The
            # import system binds packages as attributes, so the function is put into the namespace behind its back.
            vars(noisycorr)[name] = value.__wrapped__
        elif isinstance(value, types.ModuleType):
            modules[value.__name__] = None
    specs = ["noisycorr", r"!noisycorr\."]
    for module in modules:
        specs += [module, rf"!{module}\."]  # what is public is in its __all__
    return specs


def write(folder: Path) -> Path:
    """Write the pages; returns the folder."""
    pdoc.render.configure(docformat="google", search=True, show_source=False)
    pdoc.pdoc(*pages(), output_directory=folder)
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/reference.py FOLDER")
    print(write(Path(sys.argv[1])) / "index.html")
