"""The front door with all arguments flat; made by scripts/write_stub.py."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from noisycorr.__main__ import report as report
from noisycorr.__main__ import run as run
from noisycorr.classify.confident import label_issues as _label_issues
from noisycorr.classify.confident import label_quality as _label_quality
from noisycorr.clean.bench import BenchResult as BenchResult
from noisycorr.clean.result import CleanRun as CleanRun
from noisycorr.clean.scorers import clip_score as _clip_score
from noisycorr.clean.scorers import cosine as _cosine
from noisycorr.clean.scorers import crossfit as _crossfit
from noisycorr.clean.scorers import csls as _csls
from noisycorr.clean.scorers import lemon as _lemon
from noisycorr.clean.scorers import margin as _margin
from noisycorr.clean.scorers import negclip_loss as _negclip_loss
from noisycorr.clean.scorers import negclip_terms as _negclip_terms
from noisycorr.clean.scorers import neighbor_agreement as _neighbor_agreement
from noisycorr.clean.scorers import p_clean as _p_clean
from noisycorr.clean.scorers import shuffled_rows as _shuffled_rows
from noisycorr.clean.verbs import doctor as doctor
from noisycorr.clean.verbs import status as status
from noisycorr.models import losses as losses
from noisycorr.models.training.contract import Loss as Loss
from noisycorr.models.training.contract import Strategy as Strategy
from noisycorr.models.training.contract import Trust as Trust
from noisycorr.retrieval.testing import check_strategy as check_strategy

__version__: str

def bench_caption(
    output_folder: str | PathLike[str],
    *,
    sets: str = "sample=sample",
    noises: str = "random",
    ratios: str = "0,0.2,0.4,0.6",
    methods: str = "vanilla,filter,weight,noc,choice,default,oracle",
    seeds: str = "0,1,2",
    limit: int = 4000,
    test_limit: int = 500,
    val_limit: int = 500,
    decoder: str = "scratch",
    width: int = 192,
    layers: int = 2,
    attention_heads: int = 4,
    norm_first: bool = True,
    vocabulary: int = 1500,
    prefix_tokens: int = 4,
    image_grid: int = 0,
    tower: Literal["frozen", "tuned"] = "frozen",
    longest: int = 24,
    dropout: float = 0.1,
    language_part: Literal["whole", "lora", "none"] = "whole",
    language_rank: int = 8,
    epochs: int = 10,
    batch_size: int = 64,
    lr: float = 0.001,
    tower_lr: float = 1e-05,
    wd: float = 0.01,
    warmup: float = 0.1,
    grad_clip_norm: float = 1.0,
    precision: Literal["fp32", "bf16", "fp64"] = "fp32",
    select: Literal["loss", "writing"] = "writing",
    clip_model: str = "embedded",
    caption_col: str | None = None,
) -> BenchResult: ...
def bench_noise(
    output_folder: str | PathLike[str],
    *,
    sets: str = "sample=sample",
    units: str = "caption",
    ratios: str = "0,0.2,0.4,0.6",
    strategies: str = "plain,coteach,best,oracle",
    seeds: str = "0,1,2",
    limit: int = 8000,
    epochs: int = 15,
    batch_size: int = 128,
    lr: float = 0.001,
    wd: float = 0.01,
    warmup: int = 50,
    beta1: float = 0.9,
    beta2: float = 0.98,
    eps: float = 1e-06,
    grad_clip_norm: float = 2.0,
    accum_freq: int = 1,
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32",
    embed_dim: int = 256,
    hidden: int = 512,
    dropout: float = 0.5,
    temperature: float = 0.07,
    clip_model: str = "embedded",
    caption_col: str | None = None,
) -> BenchResult: ...
def bench_prompt(
    output_folder: str | PathLike[str],
    *,
    sets: str,
    methods: str = "zero-shot,ensemble,transclip,zlap,balanced,neighbors,mixture,prompt+strategy=fpl,prompt,labels+shots=2,prompt+shots=2",
    seeds: str = "0,1,2,3,4",
    measured: Literal["test", "rest"] = "test",
    prompt: Literal["text", "residual", "visual", "multimodal"] = "text",
    context: Literal["shared", "class"] = "class",
    prompt_init: str = "a photo of a",
    prompt_tokens: int = 8,
    depth: Literal["shallow", "deep"] = "shallow",
    upt_attention: Literal["full", "pair"] = "full",
    template: str = "a photo of a {}",
    scale: float = 0.0,
    strategy: Literal["grip", "ifpl", "fpl"] = "grip",
    rounds: int = 4,
    per_class: int = 16,
    selector: Literal[
        "balanced", "exclusive", "leaderboard", "argmax", "column", "threshold", "candidates"
    ] = "balanced",
    balance: Literal["estimated", "unknown", "uniform"] = "estimated",
    posterior: Literal["mixture", "neighbors", "prompt"] = "mixture",
    neighbors: int = 5,
    threshold: float = 0.9,
    alpha: float = 0.6,
    beta: float = 0.9,
    confidence: float = 0.0,
    decay: float = 1.0,
    floor: float = 0.0,
    guard: bool = True,
    guard_fit: float = 0.15,
    guard_agree: float = 0.65,
    epochs: int = 6,
    batch_size: int = 0,
    optimizer: Literal["adam", "sgd"] = "adam",
    lr: float = 0.02,
    wd: float = 0.0,
    grad_clip_norm: float = 1.0,
    loss: Literal["ce", "gce", "mae", "elr"] = "ce",
    gce_q: float = 0.7,
    clean: Literal["none", "ot", "neighbors"] = "none",
    clean_neighbors: int = 20,
    loss_weights: Literal["pooled", "shipped", "ratio"] = "pooled",
    reinit: bool = True,
    clip_model: str = "embedded",
) -> BenchResult: ...
def bench_webly(
    output_folder: str | PathLike[str],
    *,
    sets: str = "sample=sample:class=folder",
    noise: str = "diffuse,semantic,natural",
    methods: str = "plain,confident,elr,elr_plus,nested,pls,pls_lsa,mopro,capro,oracle",
    seeds: str = "0,1,2",
    anchors: int = 10,
    fewest: int = 20,
    limit: int = 6000,
    width: int = 256,
    epochs: int = 24,
    batch_size: int = 32,
    lr: float = 0.02,
    wd: float = 0.01,
    warmup: int = 20,
    grad_clip_norm: float = 0.0,
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32",
    embed_dim: int = 64,
    hidden: int = 256,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    layer: int = 0,
    unfreeze: float = 0.0,
    view: float = 0.2,
    clip_model: str = "embedded",
    caption_col: str | None = None,
) -> BenchResult: ...
def clean(
    source: Any,
    output_folder: str | PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    labels: str | PathLike[str] | None = None,
    recaption: str = "none",
    recaption_options: Mapping[str, Any] | str | None = None,
    output_format: Literal["webdataset", "parquet", "hf", "csv", "jsonl", "coco", "uids", "clip-retrieval", "issues"]
    | None = None,
    stages: str | Sequence[str] = "embed,score,decide,report",
    input_format: str = "auto",
    image_col: str | None = None,
    caption_col: str | None = None,
    url_col: str | None = None,
    id_col: str | None = None,
    image_root: str | None = None,
    wds_image_key: str = "jpg;jpeg;png;webp;gif;bmp;tif;tiff",
    wds_caption_key: str = "txt",
    hf_split: str = "train",
    number_sample_per_shard: int = 10000,
    clip_model: str = "embedded",
    batch_size: int = 64,
    workers: int = 0,
    model_precision: str = "fp32",
    store_precision: str = "fp16",
    max_pixels: int = 100000000,
    thumbnail: int = 96,
    distributor: str = "none",
    ray_workers: int = 0,
    align: str = "auto",
    folds: int = 5,
    neighbors: int = 20,
    margin: bool = True,
    calibration: str = "auto",
    target_recall: float = 0.95,
    near_duplicates: bool = True,
    seed: int = 0,
    image_threshold: float = 0.95,
    text_threshold: float = 0.98,
    phash_distance: int = 2,
    phash_threshold: float = 0.8,
    keeper: Literal["best_score", "largest", "first"] = "best_score",
    min_side: int = 32,
    max_aspect: float = 5.0,
    blank_std: float = 1.0,
    min_entropy: float = 0.3,
    min_edges: float = 0.3,
    min_characters: int = 2,
    max_characters: int = 2000,
    url_share: float = 0.5,
    markup_share: float = 0.3,
    digit_share: float = 0.75,
    bytes_share: float = 0.1,
    boilerplate_images: int = 10,
    boilerplate_alikeness: float = 0.6,
    p_threshold: float = 0.5,
    precision: float | None = None,
    fraction: float | None = None,
    threshold: float | None = None,
    keep_duplicates: bool = False,
    keep_issues: bool = False,
    review_margin: float = 0.0,
) -> CleanRun: ...
def embed(
    source: Any,
    output_folder: str | PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    labels: str | PathLike[str] | None = None,
    recaption: str = "none",
    recaption_options: Mapping[str, Any] | str | None = None,
    input_format: str = "auto",
    image_col: str | None = None,
    caption_col: str | None = None,
    url_col: str | None = None,
    id_col: str | None = None,
    image_root: str | None = None,
    wds_image_key: str = "jpg;jpeg;png;webp;gif;bmp;tif;tiff",
    wds_caption_key: str = "txt",
    hf_split: str = "train",
    number_sample_per_shard: int = 10000,
    clip_model: str = "embedded",
    batch_size: int = 64,
    workers: int = 0,
    model_precision: str = "fp32",
    store_precision: str = "fp16",
    max_pixels: int = 100000000,
    thumbnail: int = 96,
    distributor: str = "none",
    ray_workers: int = 0,
    align: str = "auto",
    folds: int = 5,
    neighbors: int = 20,
    margin: bool = True,
    calibration: str = "auto",
    target_recall: float = 0.95,
    near_duplicates: bool = True,
    seed: int = 0,
    image_threshold: float = 0.95,
    text_threshold: float = 0.98,
    phash_distance: int = 2,
    phash_threshold: float = 0.8,
    keeper: Literal["best_score", "largest", "first"] = "best_score",
    min_side: int = 32,
    max_aspect: float = 5.0,
    blank_std: float = 1.0,
    min_entropy: float = 0.3,
    min_edges: float = 0.3,
    min_characters: int = 2,
    max_characters: int = 2000,
    url_share: float = 0.5,
    markup_share: float = 0.3,
    digit_share: float = 0.75,
    bytes_share: float = 0.1,
    boilerplate_images: int = 10,
    boilerplate_alikeness: float = 0.6,
    p_threshold: float = 0.5,
    precision: float | None = None,
    fraction: float | None = None,
    threshold: float | None = None,
    keep_duplicates: bool = False,
    keep_issues: bool = False,
    review_margin: float = 0.0,
) -> CleanRun: ...
def inject(
    source: Any,
    output_folder: str | PathLike[str],
    *,
    input_format: str = "auto",
    image_col: str | None = None,
    caption_col: str | None = None,
    url_col: str | None = None,
    id_col: str | None = None,
    image_root: str | None = None,
    wds_image_key: str = "jpg;jpeg;png;webp;gif;bmp;tif;tiff",
    wds_caption_key: str = "txt",
    hf_split: str = "train",
    number_sample_per_shard: int = 10000,
    noise: str = "random_swap",
    noise_ratio: float = 0.2,
    unit: str = "caption",
    class_col: str | None = None,
    noise_file: str | None = None,
    neighbors: int = 10,
    seed: int = 0,
) -> Path: ...
def open_run(folder: str | PathLike[str]) -> Any: ...

class score:
    clip_score = staticmethod(_clip_score)
    cosine = staticmethod(_cosine)
    crossfit = staticmethod(_crossfit)
    csls = staticmethod(_csls)
    label_issues = staticmethod(_label_issues)
    label_quality = staticmethod(_label_quality)
    lemon = staticmethod(_lemon)
    margin = staticmethod(_margin)
    negclip_loss = staticmethod(_negclip_loss)
    negclip_terms = staticmethod(_negclip_terms)
    neighbor_agreement = staticmethod(_neighbor_agreement)
    p_clean = staticmethod(_p_clean)
    shuffled_rows = staticmethod(_shuffled_rows)
