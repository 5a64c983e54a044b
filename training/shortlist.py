"""Make a model's shortlist, and measure what it leaves out.

    python training/shortlist.py --config training/configs/tatoeba_en_de.yaml --model model_cards/lvnar-tatoeba-en-de \
        --results_file runs/shortlist.json

Writes `shortlist.safetensors` into the model's folder, see `lvnar_hf.engines.shortlist`. The candidates of a source
token are the target tokens that IBM Model 1 (Brown et al., 1993) aligns with it most often in the recipe's training
text. The least confidence is such that a given share of the target positions has the whole vocabulary; it is set on one
half of the validation sources, and what is missed is counted on the other, both after one refinement step. With
alignment "ctc" a position is a cell, and blank, which no training text has, is always tried.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import training.command  # noqa: F401  (ends the script with one line where that is enough)

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import lvnar_hf  # noqa: F401  (registers model and tokenizer)
from lvnar_hf.engines.shortlist import FILE, Shortlist
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.outputs import refuse_existing, refuse_missing_folder
from lvnar_hf.jobs.environment import describe_machine, describe_versions
from training.data.corpora import load_pairs
from training.data.evaluation_sets import at_even_distances
from training.recipe import DataArguments, parse_recipe

BATCH_SIZE = 32


@dataclass
class ShortlistArguments:
    """Section `shortlist`: the model, and how long the lists are."""

    model: str = field(metadata={"help": "model folder or Hub id"})
    output_folder: str | None = field(
        default=None, metadata={"help": f"{FILE} goes there; by default into the model's own folder"}
    )
    results_file: str | None = field(default=None, metadata={"help": "JSON with what was measured"})
    num_pairs: int = field(default=200_000, metadata={"help": "training pairs that are aligned, at even distances"})
    num_iterations: int = field(default=5, metadata={"help": "of IBM Model 1"})
    num_frequent: int = field(default=256, metadata={"help": "most frequent target tokens, tried for every sentence"})
    num_candidates: int = field(default=64, metadata={"help": "target tokens for each source token"})
    compared_candidates: list[int] = field(
        default_factory=lambda: [16, 32, 128], metadata={"help": "other numbers of candidates, measured alone"}
    )
    whole_share: float = field(default=0.01, metadata={"help": "share of positions with the whole vocabulary"})
    num_sentences: int = field(default=1000, metadata={"help": "validation sources, at even distances"})
    overwrite: bool = field(default=False, metadata={"help": "write over output files"})

    def __post_init__(self) -> None:
        if not 0 <= self.whole_share < 1:
            raise ValueError(f"whole_share is {self.whole_share}; it must be at least 0 and less than 1.")
        for name in ("num_pairs", "num_iterations", "num_frequent", "num_candidates", "num_sentences"):
            if getattr(self, name) < (2 if name == "num_sentences" else 1):
                raise ValueError(f"{name} is {getattr(self, name)}; that is too few.")


@dataclass
class DecoderStates:
    """Of a batch, what the decoder says of each of its valid positions.

    Attributes:
        input_ids, attention_mask: (sentences, length), of the sources.
        sentences: (positions,) which sentence.
        logits: (positions, target_vocab_size), that of padding -inf, if it is not blank.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    sentences: torch.Tensor
    logits: torch.Tensor


@torch.no_grad()
def decoder_states(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, num_refinement_steps: int = 1
) -> DecoderStates:
    """After so many refinement steps; source ids and mask are (sentences, length)."""
    source = model.encode(input_ids, attention_mask)
    latents = source.prior_means
    if num_refinement_steps:
        options = {"num_refinement_steps": num_refinement_steps - 1, "remove_repetitions": False}
        targets = model.generate(input_ids, attention_mask=attention_mask, **options)
        latents, _ = model.infer_posterior(source, targets, (targets != model.config.pad_token_id).long())
    mask, _ = model.target_positions(source, latents)
    logits = model.decode(source, latents, mask)[mask.bool()]
    if model.config.alignment == "length":
        logits[:, model.config.pad_token_id] = float("-inf")
    return DecoderStates(input_ids, attention_mask, mask.nonzero()[:, 0], logits)


def aligned_counts(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], source_size: int, target_size: int, num_iterations: int
) -> np.ndarray:
    """How often each target token is expected to translate each source token, by IBM Model 1 with an empty word.

    Args:
        pairs: source and target ids.
        num_iterations: of expectation maximisation.

    Returns:
        (source_size, target_size) float32.
    """
    empty = source_size
    sources, targets, positions, num_positions = [], [], [], 0
    for source_ids, target_ids in pairs:
        source, target = np.array([empty, *source_ids]), np.asarray(target_ids)
        sources.append(np.tile(source, len(target)))
        targets.append(np.repeat(target, len(source)))
        positions.append(num_positions + np.repeat(np.arange(len(target)), len(source)))
        num_positions += len(target)
    position = np.concatenate(positions)
    links = np.concatenate(sources).astype(np.int64) * target_size + np.concatenate(targets)
    kinds, kind = np.unique(links, return_inverse=True)  # of links, each (source token, target token) once
    probabilities = np.ones(len(kinds))
    for _ in range(num_iterations):
        weights = probabilities[kind]
        weights /= np.bincount(position, weights, minlength=num_positions)[position]
        counts = np.bincount(kind, weights, minlength=len(kinds))
        totals = np.bincount(kinds // target_size, counts, minlength=source_size + 1)
        probabilities = counts / totals[kinds // target_size]
    table = np.zeros((source_size + 1, target_size), dtype=np.float32)
    table.flat[kinds] = counts
    return table[:empty]


def make_shortlist(counts: np.ndarray, frequent: torch.Tensor, num_candidates: int, pad_token_id: int) -> Shortlist:
    """The candidates with the largest counts that are not frequent ones; whatever the confidence, they are enough.

    Args:
        counts: (source_size, target_size), of `aligned_counts`.
        frequent: (n,) target tokens.
    """
    others = torch.from_numpy(counts).clone()
    others[:, frequent] = 0
    best, candidates = others.topk(min(num_candidates, others.shape[1]))
    candidates = candidates.masked_fill(best == 0, pad_token_id)
    return Shortlist(candidates.int(), frequent.int(), torch.tensor(float("-inf")))


def confidences(states: DecoderStates, shortlist: Shortlist, config: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Of each position, the log probability of the best among those tried, and whether a likelier token is not tried.

    Returns:
        (positions,), (positions,) bool, and the number of tokens tried, over all sentences.
    """
    tried = shortlist.candidates_of(states.input_ids, states.attention_mask, config)
    is_padding = shortlist.is_padding(tried, config)
    scores = states.logits.gather(1, tried[states.sentences])
    scores = scores.masked_fill(is_padding[states.sentences], float("-inf"))
    highest = scores.amax(-1)
    return highest - scores.logsumexp(-1), states.logits.amax(-1) > highest, int((~is_padding).sum())


def calibrate(shortlist: Shortlist, batches: Sequence[DecoderStates], config: Any, whole_share: float) -> Shortlist:
    """With the confidence that `whole_share` of the positions do not have."""
    values = torch.cat([confidences(states, shortlist, config)[0] for states in batches])
    least = values.sort().values[int(whole_share * len(values))]
    return Shortlist(shortlist.candidates, shortlist.frequent, least)


def measure(shortlist: Shortlist, batches: Sequence[DecoderStates], config: Any) -> dict[str, float]:
    """Share of positions that miss the likeliest token, by the list alone and with the check; shares and sizes."""
    values, is_missed, sizes = zip(*(confidences(states, shortlist, config) for states in batches), strict=True)
    has_whole = torch.cat(values) < shortlist.min_confidence
    missed = torch.cat(is_missed)
    return {
        "missed_without_check": missed.double().mean().item(),
        "missed": (missed & ~has_whole).double().mean().item(),
        "whole_share": has_whole.double().mean().item(),
        "mean_size": sum(sizes) / sum(len(states.input_ids) for states in batches),
    }


def _states_of(model: Any, tokenizer: Any, texts: Sequence[str]) -> Iterator[DecoderStates]:
    limit = model.config.max_position_embeddings
    for start in tqdm(range(0, len(texts), BATCH_SIZE), desc="decoder's states", unit="batch"):
        encoded = tokenizer(
            list(texts[start : start + BATCH_SIZE]),
            padding=True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        )
        yield decoder_states(model, encoded["input_ids"], encoded["attention_mask"])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Make the shortlist, print one JSON line; return what is in it.

    Raises:
        FileExistsError: there is an output file, and `--overwrite` is not given.
        ValueError: --model is no folder, and no --output_folder is given; and what the recipe's text is refused for.
    """
    data, arguments = parse_recipe({"data": DataArguments, "shortlist": ShortlistArguments}, argv)
    refuse_missing_folder(arguments.model)
    folder = Path(arguments.output_folder or arguments.model)
    if arguments.output_folder is None and not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give --output_folder.")
    refuse_existing(folder / FILE, arguments.overwrite, "--output_folder")
    if arguments.results_file is not None:
        refuse_existing(arguments.results_file, arguments.overwrite, "--results_file")
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(arguments.model)
    config = model.config
    target_size = config.decoder_vocab_size

    train = load_pairs(data, "train")
    sources, targets = train["source"], train["target"]
    chosen = at_even_distances(len(sources), min(arguments.num_pairs, len(sources)))
    source_ids = tokenizer([sources[i] for i in chosen], verbose=False)["input_ids"]
    target_ids = tokenizer(text_target=[targets[i] for i in chosen], verbose=False)["input_ids"]
    pairs = list(zip(source_ids, target_ids, strict=True))
    counts = aligned_counts(pairs, config.vocab_size, target_size, arguments.num_iterations)
    frequencies = torch.bincount(torch.tensor([i for ids in target_ids for i in ids]), minlength=target_size)
    frequent = frequencies.topk(min(arguments.num_frequent, target_size)).indices

    valid = load_pairs(data, "valid")["source"]
    texts = [valid[i] for i in at_even_distances(len(valid), min(arguments.num_sentences, len(valid)))]
    calibration, held_out = (list(_states_of(model, tokenizer, texts[half::2])) for half in (0, 1))

    def of_size(num_candidates: int) -> Shortlist:
        shortlist = make_shortlist(counts, frequent, num_candidates, config.pad_token_id)
        return calibrate(shortlist, calibration, config, arguments.whole_share)

    folder.mkdir(parents=True, exist_ok=True)
    file = of_size(arguments.num_candidates).save(folder)
    sizes = sorted({arguments.num_candidates, *arguments.compared_candidates})
    result = {
        "model": arguments.model,
        "file": file.name,
        "num_pairs": len(pairs),
        "num_sentences": len(texts[1::2]),
        "num_positions": sum(len(states.logits) for states in held_out),
        "alignment": config.alignment,
        "target_vocab_size": target_size,
        "num_frequent": len(frequent),
        "num_candidates": arguments.num_candidates,
        "candidates": {str(size): measure(of_size(size), held_out, config) for size in sizes},
        "versions": describe_versions(),
        "machine": describe_machine(torch.device("cpu")),
    }
    print(json.dumps(result))
    if arguments.results_file is not None:
        Path(arguments.results_file).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(arguments.results_file), result)
    return result


if __name__ == "__main__":
    main()
