"""Parts of a timed training step: operators that are exchanged or left out, a batch drawn at random, and lengths."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from training.loop.cpu_operators import FastCpuTraining
from training.loop.objectives import Batch
from training.speed.forced_lengths import LENGTHS_FILE

OPERATORS: dict[str, Callable[[], AbstractContextManager]] = {"fast": FastCpuTraining, "torch": nullcontext}
LEFT_OUT = {"step": (), "without_attention": ("attention",), "without_dropout": ("dropout",)}
NUM_SPECIAL_IDS = 3


class WithoutOperators(TorchFunctionMode):
    """Within it, attention, dropout or both cost next to nothing; what comes before and after them stays.

    For attention stands a sum of the queries and of the means of keys and values, so that gradients reach all three.
    """

    def __init__(self, *left_out: str):
        super().__init__()
        self.left_out = left_out

    def __torch_function__(
        self, function: Callable, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is functional.dropout and "dropout" in self.left_out:
            return args[0]
        if function is functional.scaled_dot_product_attention:
            if "attention" in self.left_out:
                query, key, value = args[:3]
                return query + (key + value).mean(-2, keepdim=True)
            if "dropout" in self.left_out:
                kwargs["dropout_p"] = 0.0
        return function(*args, **kwargs)


def draw_batch(num_sentences: int, sentence_length: int, vocab_size: int) -> Batch:
    """Random sources and targets without padding; no target has equal neighbours, so that each fits into any cells."""
    shape, num_words = (num_sentences, sentence_length), vocab_size - NUM_SPECIAL_IDS
    differences = torch.randint(1, num_words, shape)
    return {
        "input_ids": torch.randint(NUM_SPECIAL_IDS, vocab_size, shape),
        "attention_mask": torch.ones(shape, dtype=torch.int64),
        "labels": differences.cumsum(-1) % num_words + NUM_SPECIAL_IDS,
    }


def usable_lengths(config: Any, max_sentence_length: int) -> np.ndarray:
    """newstest2014's (source, target) lengths in tokens, those that the model can be trained on: (pairs, 2)."""
    lengths = np.array(json.loads(LENGTHS_FILE.read_text("utf-8"))["lengths"])
    source, target = lengths.T
    fits = lengths.max(1) <= min(max_sentence_length, config.max_position_embeddings)
    if getattr(config, "alignment", None) == "ctc":
        fits &= target <= source * config.upsampling_ratio
    elif hasattr(config, "max_length_offset"):
        fits &= abs(target - source) <= config.max_length_offset
    return lengths[fits]
