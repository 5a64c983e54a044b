"""Some steps of a recipe's training without its text: what they cost, and what the run would.

What is unusual: sampler, loader, collator, processes, precision and optimizer are those of a run, so that what is timed
is the loop; the pairs alone are made up, with the lengths of newstest2014. Nothing is validated, and nothing written.
"""

import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from accelerate.utils import get_max_memory, set_seed
from transformers import PreTrainedModel

from lvnar_hf.jobs.environment import describe_machine, describe_versions
from training.data.tokenized_pairs import TokenizedPairs
from training.loop.run import check_launch
from training.loop.schedules import settings_at
from training.loop.trainer import TranslationTrainer
from training.sections import DataArguments, OptimizationArguments
from training.speed.data import peak_memory_mb
from training.speed.operations import count_memory, operation_counter
from training.speed.training_step import NUM_SPECIAL_IDS, usable_lengths

NUM_PAIRS = 50_000  # so many are alike in length that batches have the padding of a large corpus
MEMORY_SHARE = 0.8  # of what is free: what is counted is not all that is taken
BYTES_PER_PARAMETER = 16  # weights, gradients and Adam's two moments, float32


def made_up_pairs(lengths: np.ndarray, num_pairs: int, vocab_sizes: tuple[int, int], seed: int) -> TokenizedPairs:
    """Pairs of random ids with lengths drawn from (pairs, 2); no target has equal neighbours, for the cells of CTC."""
    generator = np.random.default_rng(seed)
    drawn = lengths[generator.integers(len(lengths), size=num_pairs)]
    columns: dict[str, Any] = {"row_id": np.arange(num_pairs)}
    for side, (name, vocab_size) in enumerate(zip(("input_ids", "labels"), vocab_sizes, strict=True)):
        num_words, total = vocab_size - NUM_SPECIAL_IDS, int(drawn[:, side].sum())
        ids = NUM_SPECIAL_IDS + generator.integers(1, num_words, size=total).cumsum() % num_words
        offsets = np.concatenate([[0], drawn[:, side].cumsum()])
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids, pa.int32()))
        columns[("source_length", "target_length")[side]] = drawn[:, side].astype(np.int32)
    return TokenizedPairs(pa.table(columns))


def run_dry(
    num_steps: int, data: DataArguments, arguments: OptimizationArguments, make_model: Callable[[], PreTrainedModel]
) -> dict[str, Any]:
    """Take the steps, and print and return what they cost; two more before them are not timed.

    Args:
        num_steps: timed.
        data: for the longest sentence.
        arguments: of the run; batches are smaller where the memory is not enough for its.
        make_model: called after the seed is set.

    Raises:
        ValueError: what `check_launch` refuses; or not even a batch of the longest sentence fits into memory.
    """
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    check_launch(accelerator, arguments.mixed_precision)
    set_seed(arguments.seed)
    model = make_model().train()
    config = model.config
    lengths = usable_lengths(config, data.max_sentence_length)
    asked_for, memory = arguments.max_tokens_per_batch, _fitting_budget(accelerator, model, lengths, arguments)
    arguments.max_tokens_per_batch = memory["max_tokens_per_batch"]
    arguments.output_folder = arguments.output_folder or "none"  # nothing is written there
    vocab_sizes = (config.vocab_size, getattr(config, "decoder_vocab_size", None) or config.vocab_size)
    num_batches = 2 * accelerator.num_processes * arguments.gradient_accumulation_steps
    num_pairs = max(NUM_PAIRS, num_batches * arguments.max_tokens_per_batch // int(lengths.mean()))
    train_pairs, valid_pairs = (
        made_up_pairs(lengths, number, vocab_sizes, arguments.seed) for number in (num_pairs, 8)
    )
    tokenizer: Any = SimpleNamespace(pad_token_id=0)
    trainer = TranslationTrainer(accelerator, model, tokenizer, train_pairs, valid_pairs, ([], []), arguments)
    trainer.model.train()
    steps = _steps(trainer)
    with torch.compiler.set_stance("force_eager"), operation_counter() as counter:  # compiled code is not seen
        first, _, _ = next(steps)
    next(steps)
    taken = list(islice(steps, num_steps))
    result = {
        "what": f"{num_steps} steps on made-up pairs with the lengths of newstest2014; nothing was written",
        "parameters": model.num_parameters(),
        "processes": accelerator.num_processes,
        "mixed_precision": arguments.mixed_precision,
        **memory,
        "max_tokens_per_batch_asked_for": asked_for,
        "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        "shapes": {name: list(tensor.shape) for name, tensor in first[0].items() if name != "row_ids"},
        "operations_per_step_and_process": counter.get_total_flops(),
        "target_tokens_per_step": statistics.mean(tokens for _, tokens, _ in taken),
        "seconds_per_step": statistics.median(seconds for _, _, seconds in taken),
        "lowest_and_highest": [order(seconds for _, _, seconds in taken) for order in (min, max)],
        "peak_memory_mb": _peak_memory_mb(accelerator),
        "machine": describe_machine(accelerator.device),
        "versions": describe_versions(),
    }
    seconds = result["seconds_per_step"]
    result["operations_per_second_and_process"] = result["operations_per_step_and_process"] / seconds
    result["target_tokens_per_second"] = result["target_tokens_per_step"] / seconds
    result["the_run"] = _extrapolate(arguments, seconds * asked_for / arguments.max_tokens_per_batch)
    accelerator.print(json.dumps(result, indent=2))
    return result


def _fitting_budget(
    accelerator: Accelerator, model: PreTrainedModel, lengths: np.ndarray, arguments: OptimizationArguments
) -> dict[str, Any]:
    """The recipe's tokens a batch, or as many as the free memory is enough for, and the memory that they take.

    Raises:
        ValueError: not one of the longest sentences fits.
    """
    settings = settings_at(arguments, arguments.max_steps, 1, 0.0)
    source_length, target_length = (int(length) for length in lengths.mean(0))
    counted = count_memory(model, arguments, settings, source_length, target_length)
    fixed = counted["bytes_of_any_batch"] + BYTES_PER_PARAMETER * model.num_parameters()
    of_a_token = counted["bytes_per_sentence"] / max(source_length, target_length)
    if accelerator.device.type == "cuda":
        free = float(torch.cuda.mem_get_info(accelerator.device)[0])
    else:
        free = next(iter(get_max_memory().values())) / accelerator.num_processes
    of_all = accelerator.gather(torch.tensor([free], device=accelerator.device))
    free = float(of_all.min())  # all take batches of one size
    fitting = int((MEMORY_SHARE * free - fixed) / of_a_token)
    if fitting < lengths.max():
        raise ValueError(
            f"{free / 1e9:.1f} GB are free, and a batch of one sentence of {lengths.max()} tokens takes "
            f"{(fixed + lengths.max() * of_a_token) / 1e9:.1f} GB, weights included: give smaller sizes."
        )
    budget = min(arguments.max_tokens_per_batch, fitting)
    return {"max_tokens_per_batch": budget, "counted_memory_mb": (fixed + budget * of_a_token) / 1e6}


def _steps(trainer: TranslationTrainer) -> Iterator[tuple[list[dict[str, torch.Tensor]], float, float]]:
    """Steps as a run takes them, epoch after epoch: batches of this process, target tokens of all, seconds."""
    while True:
        started = time.perf_counter()
        for group in trainer.load_groups():
            sums, _ = trainer.optimizer_step(group)
            if trainer.accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            ended = time.perf_counter()
            yield group, sums["target_tokens"], ended - started
            started = time.perf_counter()
        trainer.progress.epoch += 1


def _peak_memory_mb(accelerator: Accelerator) -> float:
    """Of this process: on a GPU what tensors took at most, on the CPU all that was resident."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device) / 1e6
    return peak_memory_mb(resource.RUSAGE_SELF)


def _extrapolate(arguments: OptimizationArguments, seconds: float) -> dict[str, Any]:
    """Hours of all steps at the recipe's batches, without validations; those of minutes or epochs are not known."""
    if arguments.max_minutes is not None:
        return {"max_minutes": arguments.max_minutes, "steps": int(60 * arguments.max_minutes / seconds)}
    if arguments.max_epochs is not None:
        return {"max_epochs": arguments.max_epochs, "hours": None, "why": "the steps of an epoch depend on the text"}
    return {"max_steps": arguments.max_steps, "hours": arguments.max_steps * seconds / 3600}
