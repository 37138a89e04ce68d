"""Two verbs that look and change nothing: at this machine, and at a run."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from noisycorr.flags import Parser


class Doctor:
    """Say what this machine has, and whether noisycorr works on it: versions, devices, disk, models, a self-test.

    Exit status 1 if something that the defaults need is missing or does not work.
    """

    name, usage, parallel = "doctor", "", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """Where runs will be written."""
        parser.add("folder", str, ".", "Folder whose free space is told")
        parser.add("self_test", bool, True, "Clean 120 pairs of the sample in a folder of its own, in seconds")

    @staticmethod
    def run(given: Namespace) -> None:
        """Print to stdout."""
        from noisycorr.doctor import check_up

        failed = []
        for found in check_up(Path(given.folder), self_test=given.self_test):
            print(f"{found.state:8s} {found.what:24s} {found.told}", flush=True)
            failed += [found.what] if found.state == "failed" else []
        if failed:
            raise SystemExit(1)


class Status:
    """Say how far a run is: who writes it, which stages and pieces are done, how fast, and when it was last heard of.

    Works on a run that is at work, one that ended and one that was killed, from any machine that sees the folder.
    """

    name, usage, parallel = "status", "FOLDER", False

    @staticmethod
    def flags(parser: Parser) -> None:
        """The run."""
        parser.add_word("folder", "FOLDER", "Run folder", need="the folder is missing: name a run folder")

    @staticmethod
    def run(given: Namespace) -> None:
        """Print to stdout."""
        from noisycorr.status import status

        print("\n".join(status(Path(given.folder))))
