"""What a run would take on machines that are not at hand: arithmetic from what was counted and what is assumed.

What is unusual: one figure of a GPU is measured, so each result is a range. Its fast end has the matrix units at the
upper share of their peak and all else hidden behind them; its slow end has the lower share, calls as slow as those of
the one run on a GPU that there was, and an exchange of gradients that waits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.batching import plan_batches

PEAK_SHARES = (0.45, 0.30)  # of the matrix peak, fast and slow: assumed, common for models of this kind
FAST_CALL = 10e-6  # seconds of the host for each call, fast: assumed
GPUS_PER_MACHINE = 8
BATCHES_PER_STEP = 8  # of the recipes, as the paper's 8 GPUs
THREAD_PRICE = 0.05  # dollars an hour of a CPU thread: assumed
THREADS_PER_MACHINE = 64
TRANSLATION_TOKENS = 16384  # padded source tokens that a GPU translates at once
BYTES_OF_STATE = 16  # a parameter: weight, gradient and Adam's two moments, float32


@dataclass(frozen=True)
class Card:
    """A kind of GPU.

    Attributes:
        teraflops: matrix peak in bfloat16, without sparsity.
        memory: GB.
        bandwidth: of the memory, GB/s.
        price: dollars an hour, assumed: a round figure among the offers of 2026 that were found.
        link, network: GB/s that a GPU exchanges gradients with, within a machine and between machines, assumed.
        source: where peak, memory and bandwidth were read.
    """

    name: str
    teraflops: float
    memory: float
    bandwidth: float
    price: float
    link: float
    network: float
    source: str


CARDS = (
    Card("L40S", 362, 48, 864, 1.0, 20, 1.5, "https://www.mullet.se/product.html?product_id=355414"),
    Card("A100 SXM", 312, 80, 2039, 2.0, 200, 20, "https://glennklockwood.com/garden/processors/A100"),
    Card("H100 SXM", 989, 80, 3350, 3.0, 350, 40, "https://glennklockwood.com/garden/processors/h100"),
)
PRICE_SOURCES = (
    "https://pricegpu.pages.dev/blog/h100-vs-a100-cloud-price",
    "https://modal.com/blog/nvidia-l40s-price-article",
)
# Training pairs, as the corpora's own descriptions say.
NUM_PAIRS = {"wmt14_en_de": 4_508_785, "aspec_ja_en": 3_008_500}
PAIR_SOURCES = {
    "wmt14_en_de": "https://huggingface.co/datasets/wmt/wmt14",
    "aspec_ja_en": "https://jipsti.jst.go.jp/aspec/",
}


@dataclass(frozen=True)
class Range:
    """The fast end and the slow end of an estimate, in the same unit."""

    fast: float
    slow: float

    def times(self, factor: float) -> "Range":
        return Range(self.fast * factor, self.slow * factor)

    def over(self, other: "Range") -> "Range":
        return Range(self.fast / other.fast, self.slow / other.slow)

    def per(self, amount: float) -> "Range":
        """The amount in a unit of this: the fast end has the most."""
        return Range(amount / self.fast, amount / self.slow)


def plan_of(lengths: np.ndarray, max_tokens: int) -> dict[str, float]:
    """Means over the batches of an epoch, of pairs with (source, target) lengths (pairs, 2).

    Places are those of the padded batch; `source_length` and `target_length` are its longest sentences.
    """
    plan = plan_batches(lengths[:, 0], lengths[:, 1], max_tokens, seed=0, epoch=0)
    longest = np.array([lengths[batch].max(0) for batch in plan])
    num_sentences = np.array([len(batch) for batch in plan])
    return {
        "sentences": float(num_sentences.mean()),
        "source_length": float(longest[:, 0].mean()),
        "target_length": float(longest[:, 1].mean()),
        "source_places": float((longest[:, 0] * num_sentences).mean()),
        "target_places": float((longest[:, 1] * num_sentences).mean()),
        "target_tokens": float(lengths[:, 1].sum() / len(plan)),
    }


def of_a_batch(counted: Mapping[str, float], plan: Mapping[str, float]) -> dict[str, float]:
    """Operations and memory of the mean batch, from those of one sentence of the mean batch's lengths."""
    places = plan["source_places"] + plan["target_places"]
    num_sentences = places / (round(plan["source_length"]) + round(plan["target_length"]))
    return {
        "operations": counted["operations"] * num_sentences,
        "calls": counted["calls"],
        "bytes": counted["bytes_per_sentence"] * num_sentences + counted["bytes_of_any_batch"],
    }


def computing(card: Card, operations: float, calls: float, slow_call: float) -> Range:
    """Seconds of a GPU for operations that calls start: the longer of the two."""
    fast, slow = (operations / (share * card.teraflops * 1e12) for share in PEAK_SHARES)
    return Range(max(fast, calls * FAST_CALL), max(slow, calls * slow_call))


def exchange(card: Card, num_gpus: int, num_parameters: float) -> float:
    """Seconds in which GPUs add up float32 gradients: each sends and receives nearly twice their size."""
    if num_gpus == 1:
        return 0.0
    speed = card.link if num_gpus <= GPUS_PER_MACHINE else card.network
    return 2 * (num_gpus - 1) / num_gpus * 4 * num_parameters / (speed * 1e9)


def training_step(
    card: Card,
    num_gpus: int,
    counted: Mapping[str, float],
    plan: Mapping[str, float],
    slow_call: float,
    growth: int = 1,
) -> Range:
    """Seconds of a step of `growth` times the recipe's eight batches, whatever the GPUs.

    Fewer GPUs accumulate whole batches; more GPUs take parts of a batch each, with as many calls.
    """
    batch = of_a_batch(counted, plan)
    batches_of_a_gpu = BATCHES_PER_STEP * growth / num_gpus
    rounds = max(1.0, batches_of_a_gpu)
    seconds = computing(card, batch["operations"] * batches_of_a_gpu, batch["calls"] * rounds, slow_call)
    waiting = exchange(card, num_gpus, counted["parameters"])
    return Range(max(seconds.fast, waiting), seconds.slow + waiting)


def search_seconds(
    card: Card, search: Mapping[str, Any], num_beams: int, plan: Mapping[str, float], slow_call: float
) -> Range:
    """Seconds of beam search for the mean batch, in 16 bits, with the calls of transformers.

    Each round reads the decoder's weights, and all keys and values that are cached: for attention, and once more when
    they are written anew in the order of the beams.
    """
    rows, rounds = plan["sentences"] * num_beams, plan["longest_target"]
    scale = plan["mean_target"] / search["target_length"]
    operations = plan["sentences"] * search["encoder"] + rows * search["hypothesis"] * scale
    length = plan["source_length"] + plan["mean_target"] / 2
    cached = 3 * 4 * search["layers"] * search["hidden_size"] * length  # bytes
    reading = rounds * (2 * search["decoder_parameters"] + rows * cached) / (card.bandwidth * 1e9)
    seconds = computing(card, operations, rounds * search["calls_per_token"], slow_call)
    return Range(max(seconds.fast, reading), max(seconds.slow, reading))


def search_plan(lengths: np.ndarray, max_tokens: int) -> dict[str, float]:
    """Means over batches of a token budget of sources alike in length; targets are as long as the references."""
    plan = plan_batches(lengths[:, 0], lengths[:, 0], max_tokens, seed=0, epoch=0)
    return {
        "sentences": len(lengths) / len(plan),
        "source_length": float(np.mean([lengths[batch, 0].max() for batch in plan])),
        "mean_target": float(lengths[:, 1].mean()),
        "longest_target": float(np.mean([lengths[batch, 1].max() for batch in plan])),
    }


def memory(counted: Mapping[str, float], plan: Mapping[str, float], num_gpus: int, is_sharded: bool) -> float:
    """GB of a process at the peak of a step, with the recipe's batch.

    Without shards, each has weights, gradients and moments, and a copy of the gradients that are exchanged if there are
    several. In shards these are divided; but the model is one unit, so that a step gathers all weights and gradients,
    and a whole copy of the weights is kept beside (training/README.md).
    """
    fixed: float = BYTES_OF_STATE
    if is_sharded:
        fixed = BYTES_OF_STATE / num_gpus + 3 * 4
    elif num_gpus > 1:
        fixed += 4
    return (fixed * counted["parameters"] + of_a_batch(counted, plan)["bytes"]) / 1e9


def translation(card: Card, counted: Mapping[str, float], num_steps: int, sentences: float, slow_call: float) -> Range:
    """Seconds of a GPU for a batch of so many sentences, with every step taken."""
    operations = (counted["first"] + num_steps * counted["step"]) * sentences
    return computing(card, operations, counted["first_calls"] + num_steps * counted["step_calls"], slow_call)
