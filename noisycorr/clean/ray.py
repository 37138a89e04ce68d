"""The embed stage on a Ray cluster: the same task for each piece, given out by Ray instead of by rank.

Workers write into the run folder themselves, so all machines must see it, and the source, under the same paths. What a
dead worker left undone is given to another one by the next run of the same command, as without Ray.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from noisycorr.clean.embed import embed_pieces, unfinished
from noisycorr.data.readers import Piece
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run

if TYPE_CHECKING:
    from noisycorr.clean.plan import Plan


class Worker:
    """One process of the cluster with a reader and an encoder of its own.

    Args:
        plan: All choices of the run.
        folder: Of the run.
    """

    def __init__(self, plan: Plan, folder: str) -> None:
        from noisycorr.clean.plan import open_plan

        self.plan, self.run = plan, Run(folder)
        self.reader, self.encoder = open_plan(plan)

    def embed(self, piece: Piece) -> int:
        """Do one piece; its number."""
        embed_pieces([piece], self.reader, self.encoder, self.run, self.plan.embed)
        return piece.index


def embed_on_ray(plan: Plan, pieces: list[Piece], run: Run) -> None:
    """Do every piece that is not done yet, on a running cluster if RAY_ADDRESS names one, else on this machine.

    Args:
        plan: All choices.
        pieces: All pieces of the source.
        run: The folder.

    Raises:
        UsageError: If Ray is not installed, or the program was started as several processes, too.
        OSError: If a worker died; what was finished is kept.
    """
    if dist.count() > 1:
        raise UsageError("`distributor` ray starts workers itself: start noisycorr as one process.")
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise UsageError("`distributor` is ray, which is not installed: pip install 'noisycorr[ray]'.") from None
    todo = unfinished(pieces, run)
    if not todo:
        return
    with _cluster(ray, plan.embed.ray_workers):
        count = plan.embed.ray_workers or int(ray.cluster_resources().get("CPU", 1))
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / count)
        make = ray.remote(num_cpus=1, num_gpus=gpus)(Worker)
        pool = ActorPool([make.remote(plan, str(run.folder.resolve())) for _ in range(min(count, len(todo)))])
        results = pool.map_unordered(lambda worker, piece: worker.embed.remote(piece), todo)
        try:
            for _ in console.bar(results, label="embed", total=len(todo), unit="piece"):
                pass
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # what the worker itself would have said
        except ray.exceptions.RayActorError as error:
            raise OSError(f"a Ray worker died ({str(error).splitlines()[0]})") from error


@contextlib.contextmanager
def _cluster(ray: Any, workers: int) -> Iterator[None]:
    """Joined or started, and left as it was found."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    own = {"num_cpus": workers or None, "include_dashboard": False}
    ray.init(address=address, log_to_driver=False, configure_logging=False, **({} if address else own))
    try:
        yield
    finally:
        ray.shutdown()
