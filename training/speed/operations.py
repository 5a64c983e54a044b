"""What a model costs, counted on its own code: operations, calls and memory of a training step, parts of a translation.

What is unusual: it is counted on a CPU, for a GPU. Dropout keeps a byte a number and the loss of CTC takes all cells at
once, as there. All but the calls is proportional to the sentences, so that a few are enough.

- Operations are those of matrix products: a multiplication and an addition are two.
- Calls are operators that give a new tensor or write into one: a GPU is given a kernel, or more, for each.
- Memory is what the tensors hold that are alive at once, weights apart; inside an operator nothing is seen.
"""

import dataclasses
import json
import statistics
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import MarianMTModel

from lvnar_hf import LvnarForConditionalGeneration, ctc_lvnar
from training.loop.objectives import Batch, objective_for
from training.loop.schedules import settings_at
from training.recipe import SECTIONS, parse_recipe
from training.sections import OptimizationArguments
from training.speed.scale import plan_of, search_plan
from training.speed.training_step import draw_batch, usable_lengths

POOL_SIZE = 50_000


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """(batch, heads, length, head_dim): two products."""
    return 4 * query[0] * query[1] * query[2] * key[-2] * query[3]


def _attention_backward(gradient: Any, *shapes: Any, **options: Any) -> int:
    """Five products: the scores are computed again."""
    return _attention(*shapes) // 4 * 10


def operation_counter() -> FlopCounterMode:
    """torch's counter, which has not heard of the attention of CPUs."""
    of_cpu = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            of_cpu._scaled_dot_product_flash_attention_for_cpu: _attention,
            of_cpu._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


class Watch(TorchDispatchMode):
    """Within it, calls are counted, and the bytes of the tensors that are made and alive.

    Attributes:
        num_calls: so far.
        alive, peak: bytes now, and the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = self.alive = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        output = function(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known | before:
                self._known.add(storage._cdata)
                self.alive += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        aliases = [value.alias_info for value in function._schema.returns]
        self.num_calls += not any(alias is not None and not alias.is_write for alias in aliases)
        return output

    def _forget(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.alive -= size


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class _DropoutOfGpus(TorchFunctionMode):
    """Dropout that keeps which numbers are left as bytes; a CPU's own keeps the factors."""

    def __torch_function__(
        self, function: Callable, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.dropout:
            given = {"p": 0.5, "training": True, **dict(zip(("input", "p", "training"), args, strict=False)), **kwargs}
            if not given["training"] or not given["p"]:
                return given["input"]
            return torch.native_dropout(given["input"], given["p"], True)[0]
        return function(*args, **kwargs)


def _as_on_a_gpu() -> AbstractContextManager:
    stack = ExitStack()
    stack.enter_context(patch.object(ctc_lvnar, "_parts", lambda rows: [slice(0, len(rows))]))
    stack.enter_context(_DropoutOfGpus())
    return stack


def make_batch(model: Any, num_sentences: int, source_length: int, target_length: int) -> Batch:
    """Random sentences of one length on each side, within the model's vocabularies."""
    config = model.config
    sizes = config.vocab_size, getattr(config, "decoder_vocab_size", None) or config.vocab_size
    source = draw_batch(num_sentences, source_length, sizes[0])
    target = draw_batch(num_sentences, target_length, sizes[1])
    return {**source, "labels": target["labels"]}


def _loss(model: Any, batch: Batch, arguments: OptimizationArguments, settings: Mapping[str, float]) -> torch.Tensor:
    """Of a training step as the trainer takes it, in the recipe's precision."""
    with torch.autocast("cpu", torch.bfloat16, enabled=arguments.mixed_precision != "no"):
        num_tokens = batch["labels"].numel()
        return objective_for(model).training_loss(model, batch, num_tokens, arguments.label_smoothing, settings)[0]


def count_step(
    model: Any, arguments: OptimizationArguments, settings: Mapping[str, float], source_length: int, target_length: int
) -> dict[str, float]:
    """A training step: `operations` of one sentence, `forward_operations` of them, and `calls` of any batch.

    Args:
        model: in training mode, on the CPU; it is left without gradients.
        arguments: precision and label smoothing.
        settings: of `settings_at`.
        source_length, target_length: of each sentence.
    """
    batch = make_batch(model, 1, source_length, target_length)
    counter, watch = operation_counter(), Watch()
    with counter, watch, _as_on_a_gpu():
        loss = _loss(model, batch, arguments, settings)
        forward_operations = counter.get_total_flops()
        loss.backward()
    model.zero_grad(set_to_none=True)
    return {"operations": counter.get_total_flops(), "forward_operations": forward_operations, "calls": watch.num_calls}


def count_memory(
    model: Any, arguments: OptimizationArguments, settings: Mapping[str, float], source_length: int, target_length: int
) -> dict[str, int]:
    """What a step holds beside weights, gradients and moments: bytes a sentence, and those of any batch.

    At its peak, where the backward pass begins and nothing that the forward pass has kept is free yet; so the gradient
    is taken of a weight of the last layer alone.

    Args: as for `count_step`.
    """
    last_weight = list(model.parameters())[-1]
    peaks = {}
    for num_sentences in (1, 2):
        batch = make_batch(model, num_sentences, source_length, target_length)
        watch = Watch()
        with watch, _as_on_a_gpu():
            torch.autograd.grad(_loss(model, batch, arguments, settings), last_weight)
        peaks[num_sentences] = watch.peak
    of_a_sentence = peaks[2] - peaks[1]
    return {"bytes_per_sentence": of_a_sentence, "bytes_of_any_batch": max(0, peaks[1] - of_a_sentence)}


@torch.no_grad()
def count_translation(model: LvnarForConditionalGeneration, source_length: int, target_length: int) -> dict[str, int]:
    """Operations of a sentence, in parts: `first` is what zero steps take, `step` what each step adds; and their calls.

    Args:
        model: in evaluation mode.
        target_length: that of the translation in each step; with alignment "ctc", the cells follow from the source.
    """
    batch = make_batch(model, 1, source_length, target_length)
    mask = torch.ones_like(batch["labels"])

    def decode(source: Any, latents: torch.Tensor) -> None:
        if model.config.alignment == "ctc":
            cells = ctc_lvnar.ctc_cell_mask(batch["attention_mask"], model.config.upsampling_ratio)
            model.decode(source, latents, cells).argmax(-1)
        else:
            model.predict_length(source, latents)
            model.decode(source, latents, mask).argmax(-1)

    counts: dict[str, int] = {}
    with operation_counter() as first, Watch() as first_watch:
        source = model.encode(batch["input_ids"], batch["attention_mask"])
        decode(source, source.prior_means)
    with operation_counter() as step, Watch() as step_watch:
        decode(source, model.infer_posterior(source, batch["labels"], mask)[0])
    for name, counter, watch in (("first", first, first_watch), ("step", step, step_watch)):
        counts |= {name: counter.get_total_flops(), f"{name}_calls": watch.num_calls}
    return counts


@torch.no_grad()
def count_search(teacher: Any, num_beams: int, source_length: int, target_length: int) -> dict[str, int]:
    """Beam search of transformers: operations of a sentence's `encoder`, of a `hypothesis`, and `calls` of a token.

    A hypothesis is counted as the decoder's pass over all of it, whose products with cached keys are the same but for
    half of the attention. Each token is a round of calls for the whole batch.
    """
    batch = make_batch(teacher, 1, source_length, target_length)
    with operation_counter() as encoder:
        states = teacher.get_encoder()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    with operation_counter() as decoder:
        teacher(encoder_outputs=states, attention_mask=batch["attention_mask"], decoder_input_ids=batch["labels"])
    num_calls = []
    for num_tokens in (2, 6):
        with Watch() as watch:
            lengths = {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens}
            teacher.generate(**{**batch, "labels": None}, num_beams=num_beams, **lengths)
        num_calls.append(watch.num_calls)
    return {
        "encoder": encoder.get_total_flops(),
        "hypothesis": decoder.get_total_flops(),
        "calls_per_token": (num_calls[1] - num_calls[0]) // 4,
    }


def pool_of(lengths: np.ndarray) -> np.ndarray:
    """Lengths (pairs, 2) that come again, as in a large corpus, so that batches have its padding."""
    return lengths[np.random.default_rng(0).integers(10**9, size=POOL_SIZE) % len(lengths)]


def count_recipe(recipe: str, alignments: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All that `training.speed.scale` asks of a recipe, at its sizes and its first step, with newstest2014's lengths.

    Args:
        recipe: its file.
        alignments: name to keys of sections `model` and `training` in place of the recipe's.
    """
    sections = {name: SECTIONS[name] for name in ("tokenizer", "teacher")}
    tokenizer, teacher_sizes = parse_recipe(sections, ["--config", recipe])
    sizes, training = parse_recipe({name: SECTIONS[name] for name in ("model", "training")}, ["--config", recipe])
    data, distillation = parse_recipe({name: SECTIONS[name] for name in ("data", "distillation")}, ["--config", recipe])
    (of_teacher,) = parse_recipe({"teacher_training": SECTIONS["teacher_training"]}, ["--config", recipe])
    target_size = None if tokenizer.joint else tokenizer.target_vocab_size or tokenizer.vocab_size
    vocabularies = tokenizer.vocab_size, target_size
    models = {}

    def count(name: str, model: Any, arguments: OptimizationArguments) -> tuple[int, int]:
        lengths = usable_lengths(model.config, data.max_sentence_length)
        plan = plan_of(pool_of(lengths), arguments.max_tokens_per_batch)
        shape = round(plan["source_length"]), round(plan["target_length"])
        settings = settings_at(arguments, arguments.max_steps, 1, 0.0)
        counted: dict[str, Any] = {**count_step(model, arguments, settings, *shape)}
        counted |= count_memory(model, arguments, settings, *shape)
        counted |= {"parameters": model.num_parameters(), "plan": plan, "max_steps": arguments.max_steps}
        models[name] = counted
        return shape

    model: Any = MarianMTModel(teacher_sizes.to_config(*vocabularies)).train()
    shape = count("teacher", model, of_teacher)
    lengths = usable_lengths(model.config, data.max_sentence_length)
    search = count_search(model.eval(), distillation.num_beams, *shape) | {
        "num_beams": distillation.num_beams,
        "target_length": shape[1],
        "layers": model.config.decoder_layers,
        "hidden_size": model.config.d_model,
        "decoder_parameters": sum(p.numel() for p in model.get_decoder().parameters()),
        "plan": search_plan(pool_of(lengths), distillation.max_batch_tokens),
    }
    translations = {}
    for name, changes in alignments.items():
        own = {field.name for field in dataclasses.fields(sizes)}
        of_model = dataclasses.replace(sizes, **{key: value for key, value in changes.items() if key in own})
        of_training = dataclasses.replace(training, **{key: value for key, value in changes.items() if key not in own})
        model = LvnarForConditionalGeneration(of_model.to_config(*vocabularies)).train()
        shape = count(name, model, of_training)
        translations[name] = count_translation(model.eval(), *shape) | {"source_length": shape[0]}
    return {"models": models, "search": search, "translations": translations}


def count_seen_steps(recipe: str, log: str, sentence_length: int = 10) -> dict[str, float]:
    """The calls of a recipe's step in float32, and the seconds that its steps took in a run on a GPU.

    Args:
        recipe: its file.
        log: `log.jsonl` of the run; of its steps those between two lines of training, so without validations.
        sentence_length: tokens of every source and target, about those of the text.
    """
    names = ("tokenizer",), ("model", "training")
    (tokenizer,), (sizes, training) = (
        parse_recipe({name: SECTIONS[name] for name in group}, ["--config", recipe]) for group in names
    )
    model = LvnarForConditionalGeneration(sizes.to_config(tokenizer.vocab_size, None)).train()
    training = dataclasses.replace(training, mixed_precision="no")
    settings = settings_at(training, training.max_steps, 1, 0.0)
    lines = [json.loads(line) for line in Path(log).read_text("utf-8").splitlines()]
    seconds = statistics.median(
        60 * (line["minutes"] - before["minutes"]) / (line["step"] - before["step"])
        for before, line in pairwise(lines)
        if before["kind"] == line["kind"] == "train"
    )
    calls = count_step(model, training, settings, sentence_length, sentence_length)["calls"]
    return {"calls": calls, "seconds_per_step": seconds, "sentence_length": sentence_length}
