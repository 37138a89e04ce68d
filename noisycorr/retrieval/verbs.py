"""What is typed, in Python and at the command line: train, and the bench of methods.

Everything heavy is imported where it is used, so that the help comes at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any

from noisycorr.clean.verbs import as_yaml
from noisycorr.data.readers import Reading
from noisycorr.models.training.choice import Split, Train
from noisycorr.models.training.tune_choice import Regions, Tune, default_rate
from noisycorr.runtime.folder import new_run
from noisycorr.runtime.lock import at_work
from noisycorr.runtime.signature import Named, Without, checked, flat

if TYPE_CHECKING:
    from noisycorr.retrieval.result import RetrievalModel


@flat
def train(
    source: Any, output_folder: str | PathLike[str] | None = None, *, overwrite: bool = False,
    strategy: Annotated[Any, Named()] = "best", strategy_options: Mapping[str, Any] | str | None = None,
    lr: float | None = None, train: Annotated[Train, Without("lr")] = Train(), split: Split = Split(),
    clip_model: str = "embedded", tune: Tune = Tune(), regions: Regions = Regions(), evaluate: bool = True,
    report_to: str = "none", reading: Reading = Reading(),
) -> RetrievalModel:  # fmt: skip
    """Train a retrieval model that doubts its pairs.

    Works on the features that `noisycorr clean` stored, so that each picture is decoded once. Pairs are split by image,
    the best epoch is selected on validation pairs, and the test split is opened once, after the last epoch. The numbers
    and curves stand in `report.html`. The same command continues an interrupted training.

    Args:
        source: Run folder of `noisycorr clean`, or any source that it reads, which is then embedded and scored first;
            in Python also what `clean` returned.
        output_folder: Folder for the model, made if absent; by default noisycorr_out/NAME-model, after the source.
        overwrite: Delete what an earlier training left in the folder.
        strategy: Method: a name of the paper index such as best, coteach, pc2 or plain, or your own, ./FILE.py:CLASS;
            in Python also an object of a class that inherits from noisycorr.Strategy.
        strategy_options: Options of the method as a mapping.
        lr: Highest learning rate of AdamW; it rises over `warmup` steps and falls along a cosine to 0; by default 1e-3
            for heads, 1e-5 for whole and last_blocks, 1e-4 for lora, 5e-4 for scratch, 2e-4 for regions.
        clip_model: Encoder of a source that is not embedded yet, as for `clean`; and the one to fine-tune, if
            `train_part` is not heads, which may also be scratch:vit or scratch:cnn, small ones with random weights.
        evaluate: Open the test split after training, as `noisycorr evaluate` does.
        report_to: Trackers of Accelerate that get the numbers of each epoch: none, all that are installed, or names
            such as tensorboard,wandb.

    Returns:
        The model: `summary`, `metrics`, `evaluate(...)`, `encode_image(...)`, `encode_text(...)` and more.

    Raises:
        UsageError: If the source cannot be read, an argument is out of its range, the folder holds another training, or
            there are too few pairs.
    """
    from noisycorr.clean.sources import folder_for, path_of
    from noisycorr.retrieval.plan import Plan
    from noisycorr.retrieval.result import RetrievalModel
    from noisycorr.retrieval.train import check_trackers, chosen_strategy
    from noisycorr.retrieval.train import train as run_training

    check_trackers(report_to)
    rate = default_rate(tune, clip_model, regions.region) if lr is None else checked("lr", float, lr)
    method = chosen_strategy(strategy, as_yaml(strategy_options))
    run = new_run(folder_for(source, output_folder, reading, ending="-model"))
    with at_work(run.folder, "train"):
        plan = Plan(
            source=reading.at(path_of(source, run, reading)), clip_model=clip_model,
            train=dataclasses.replace(train, lr=rate), split=split, strategy=method, tune=tune, regions=regions,
            evaluate=evaluate, report_to=report_to,
        )  # fmt: skip
        run_training(plan, run, overwrite=overwrite)
    return RetrievalModel(run.folder)
