"""Whether the vocabulary projection could be cut: how often a shortlist misses the likeliest token.

    python training/shortlist.py --config training/configs/tatoeba_en_de.yaml --model model_cards/lvnar-tatoeba-en-de \
        --output_file runs/shortlist.json

Two kinds, on the decoder's states for the validation sources, after one refinement step:
- lexical (Jean et al., 2015): the target tokens that go with the source's tokens in the training text, and the most
  frequent ones; the whole product is computed for these alone;
- screened (Shim et al., 2017): a product of small rank for all tokens, then the exact one for the best of them. The
  low-rank factors are those nearest to the embedding on the model's own states, for sources of random tokens.

A miss is certain not to be one where the Cauchy-Schwarz inequality bounds what the first product leaves out.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import lvnar_hf  # noqa: F401  (registers model and tokenizer)
from lvnar_hf.generation_lvnar import lengths_to_mask
from training.atomic_files import write_json
from training.corpora import load_pairs
from training.environment import describe_machine, describe_versions
from training.outputs import refuse_existing
from training.recipe import DataArguments, parse_recipe
from training.test_sets import at_even_distances

BATCH_SIZE = 32
NUM_CALIBRATION_BATCHES = 16


@dataclass
class ShortlistArguments:
    """Section `shortlist`: the model, and what is tried."""

    model: str = field(metadata={"help": "folder or Hub id of a model of this package"})
    output_file: str = field(metadata={"help": "JSON with the result"})
    num_sentences: int = field(default=512, metadata={"help": "validation sources, at even distances"})
    num_frequent: int = field(default=256, metadata={"help": "lexical: most frequent target tokens, in every list"})
    num_candidates: list[int] = field(
        default_factory=lambda: [16, 32, 64], metadata={"help": "lexical: target tokens for each source token"}
    )
    rank_divisors: list[int] = field(
        default_factory=lambda: [8, 4, 2], metadata={"help": "screened: the rank is the hidden size divided by this"}
    )
    num_screened: int = field(default=32, metadata={"help": "screened: tokens with an exact product"})
    overwrite: bool = field(default=False, metadata={"help": "write over an output file"})


@dataclass
class DecoderStates:
    """Of a batch: source ids (sentences, length); the rest for each of the valid target positions.

    Attributes:
        sentences: (positions,) which sentence.
        states: (positions, hidden_size).
        logits: (positions, target_vocab_size), that of padding -inf.
    """

    source_ids: torch.Tensor
    sentences: torch.Tensor
    states: torch.Tensor
    logits: torch.Tensor


@torch.no_grad()
def decoder_states(
    model: Any, weight: torch.Tensor, source_ids: torch.Tensor, attention_mask: torch.Tensor
) -> DecoderStates:
    """After one refinement step; the weight is that of the projection, source and mask are (sentences, length)."""
    options = {"num_refinement_steps": 0, "remove_repetitions": False}
    targets = model.generate(source_ids, attention_mask=attention_mask, **options)
    source = model.encode(source_ids, attention_mask)
    latents, _ = model.infer_posterior(source, targets, (targets != model.config.pad_token_id).long())
    lengths = model.likeliest_lengths(model.predict_length(source, latents), attention_mask)
    mask = lengths_to_mask(lengths, int(lengths.max()))
    is_valid = mask.bool()
    states = model.decoder(latents, source.decoder_keys_values, attention_mask, mask)[is_valid]
    logits = states @ weight.T
    logits[:, model.config.pad_token_id] = float("-inf")
    return DecoderStates(source_ids, is_valid.nonzero()[:, 0], states, logits)


def association(pairs: Iterable[tuple[list[int], list[int]]], source_size: int, target_size: int) -> torch.Tensor:
    """Dice coefficients of source and target tokens that stand in the same pairs: (source_size, target_size)."""
    together = torch.zeros(source_size, target_size)
    source_counts, target_counts = torch.zeros(source_size, 1), torch.zeros(target_size)
    for source_ids, target_ids in pairs:
        rows, columns = torch.tensor(sorted(set(source_ids))), torch.tensor(sorted(set(target_ids)))
        together[rows[:, None], columns] += 1
        source_counts[rows] += 1
        target_counts[columns] += 1
    return 2 * together / (source_counts + target_counts).clamp(min=1)


def measure_lexical(
    batches: list[DecoderStates], candidates: torch.Tensor, frequent: torch.Tensor
) -> dict[str, float | int]:
    """Share of positions whose likeliest token is not in the list of its sentence; sizes of the lists.

    Args:
        candidates: (source_vocab_size, k) target tokens.
        frequent: (n,) target tokens that are in every list.
    """
    missed = num_positions = 0
    sizes, batch_sizes = [], []
    for batch in batches:
        allowed = torch.zeros(len(batch.source_ids), batch.logits.shape[-1], dtype=torch.bool)
        allowed[:, frequent] = True
        allowed.scatter_(1, candidates[batch.source_ids].flatten(1), True)
        best = batch.logits.argmax(-1)
        missed += int((~allowed[batch.sentences, best]).sum())
        num_positions += len(best)
        sizes += allowed.sum(-1).tolist()
        batch_sizes.append(int(allowed.any(0).sum()))
    return {
        "missed": missed / num_positions,
        "mean_size": sum(sizes) / len(sizes),
        "mean_size_of_batches": sum(batch_sizes) / len(batch_sizes),
    }


def low_rank(weight: torch.Tensor, states: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors (vocab_size, rank) and (rank, hidden_size) whose product is nearest to the weight on these states."""
    second_moment = states.T @ states / len(states)
    second_moment += 1e-3 * second_moment.diagonal().mean() * torch.eye(len(second_moment))
    root = torch.linalg.cholesky(second_moment)
    left, values, right = torch.linalg.svd(weight @ root, full_matrices=False)
    return left[:, :rank] * values[:rank], torch.linalg.solve_triangular(root, right[:rank], left=False, upper=False)


def measure_screened(
    batches: list[DecoderStates], weight: torch.Tensor, calibration: torch.Tensor, rank: int, num_screened: int
) -> dict[str, float]:
    """Share of positions whose likeliest token is missed, and of those that are certain not to be missed."""
    tokens, reduction = low_rank(weight, calibration, rank)
    basis, _ = torch.linalg.qr(reduction.T)  # (hidden_size, rank): what the first product sees of a state
    largest_residual = (weight - tokens @ reduction).norm(dim=-1).max()
    missed = certain = num_positions = 0
    for batch in batches:
        approximate = (batch.states @ reduction.T) @ tokens.T
        approximate.masked_fill_(batch.logits == float("-inf"), float("-inf"))
        scores, best = approximate.topk(num_screened)
        highest = batch.logits.gather(1, best).amax(-1)
        missed += int((highest < batch.logits.amax(-1)).sum())
        unseen = (batch.states - (batch.states @ basis) @ basis.T).norm(dim=-1)
        certain += int((highest >= scores[:, -1] + largest_residual * unseen).sum())
        num_positions += len(highest)
    return {"missed": missed / num_positions, "certain": certain / num_positions}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure both kinds, print and write the result; return what is in the JSON."""
    data, arguments = parse_recipe({"data": DataArguments, "shortlist": ShortlistArguments}, argv)
    refuse_existing(arguments.output_file, arguments.overwrite, "--output_file")
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(arguments.model)
    config = model.config
    target_size = config.target_vocab_size or config.vocab_size
    weight = (model._target_embedding if config.tie_word_embeddings else model.output_proj).weight.detach()

    limit = config.max_position_embeddings
    valid = load_pairs(data, "valid")["source"]
    sources = [valid[i] for i in at_even_distances(len(valid), arguments.num_sentences)]
    batches = []
    for start in range(0, len(sources), BATCH_SIZE):
        texts = sources[start : start + BATCH_SIZE]
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        batches.append(decoder_states(model, weight, encoded["input_ids"], encoded["attention_mask"]))

    generator = torch.Generator().manual_seed(0)
    states = []
    for length in torch.linspace(3, min(40, limit), NUM_CALIBRATION_BATCHES).long().tolist():
        ids = torch.randint(3, config.vocab_size, (BATCH_SIZE, length), generator=generator)
        ids[:, -1] = config.eos_token_id
        states.append(decoder_states(model, weight, ids, torch.ones_like(ids)).states)
    calibration = torch.cat(states)

    train = load_pairs(data, "train")
    train_sources = tokenizer(train["source"], verbose=False)["input_ids"]
    train_targets = tokenizer(text_target=train["target"], verbose=False)["input_ids"]
    coefficients = association(zip(train_sources, train_targets, strict=True), config.vocab_size, target_size)
    counts = torch.bincount(torch.tensor([token for ids in train_targets for token in ids]), minlength=target_size)
    frequent = counts.topk(arguments.num_frequent).indices

    result = {
        "model": arguments.model,
        "num_sentences": len(sources),
        "num_positions": sum(len(batch.states) for batch in batches),
        "target_vocab_size": target_size,
        "hidden_size": config.hidden_size,
        "batch_size": BATCH_SIZE,
        "num_frequent": arguments.num_frequent,
        "lexical": {
            count: measure_lexical(batches, coefficients.topk(count).indices, frequent)
            for count in arguments.num_candidates
        },
        "num_screened": arguments.num_screened,
        "screened": {
            config.hidden_size // divisor: measure_screened(
                batches, weight, calibration, config.hidden_size // divisor, arguments.num_screened
            )
            for divisor in arguments.rank_divisors
        },
        "versions": describe_versions(),
        "machine": describe_machine(torch.device("cpu")),
    }
    print(json.dumps(result))
    Path(arguments.output_file).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(arguments.output_file), result)
    return result


if __name__ == "__main__":
    main()
