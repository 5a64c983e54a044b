"""The training loop: the ELBO with its KL budget (Shu et al., 2020, Eq. 5, 9, 10), or an autoregressive teacher's loss.

What is unusual: the random numbers of a batch depend on the seed, the epoch and the batch's number in the plan of the
epoch, and on nothing before it. So a run that was stopped and resumed ends as one that was not, and the same batches
give the same step whether two processes take one each or one process takes both.
"""

import copy
import dataclasses
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from datasets import Dataset
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lvnar_hf.files.atomic import atomic_folder, restore_replaced
from training.data.batching import TokenBudgetBatchSampler, TranslationCollator
from training.data.evaluation_sets import evenly_spaced
from training.data.tokenized_pairs import pair_lengths
from training.loop.cpu_operators import FastCpuTraining
from training.loop.log import LogWindow, RunLog
from training.loop.objectives import objective_for
from training.loop.schedules import settings_at
from training.loop.states import STEP_FOLDERS, RunStates
from training.quality.decoding import translate_texts
from training.sections import OptimizationArguments
from training.translation_quality.bleu import corpus_scores


class NonFiniteError(RuntimeError):
    """The loss, the gradient, a weight or the figure that selects is not finite; the message names the step."""


@dataclass
class RunProgress:
    """Where a run stands; saved and loaded with its state."""

    step: int = 0
    epoch: int = 0
    num_batches_done: int = 0  # of the epoch, by each process
    seconds: float = 0.0  # in `train`, validations and checkpoints included, pauses between sessions not
    seconds_validated: float = 0.0  # those at the end of the last validation
    is_finished: bool = False
    best_metrics: dict[str, float] = field(default_factory=dict)
    checkpoint_scores: dict[str, float] = field(default_factory=dict)  # folder's name to the figure that selects
    log_window: dict[str, Any] = field(default_factory=dict)  # the steps since the last line of the log

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class TranslationTrainer:
    """Trains a model on tokenised pairs; `training/train.py` and `training/teacher.py` are its commands.

    Args:
        accelerator: decides device, processes and precision.
        model: to be trained: this package's, or any autoregressive sequence-to-sequence model of transformers.
        tokenizer: saved beside every checkpoint, and used to score validation translations.
        train_pairs, valid_pairs: what `training.data.encoding.tokenize_pairs` returns.
        valid_texts: (source, target) texts for BLEU, in the order of the validation files.
        arguments: section `training` of the recipe.

    What it writes to the output folder: `log.jsonl`, `checkpoints/step-N`, `best`; and `states/step-N`, from which the
    run can be continued as if it had never stopped.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        train_pairs: Dataset,
        valid_pairs: Dataset,
        valid_texts: tuple[list[str], list[str]],
        arguments: OptimizationArguments,
    ):
        if not len(train_pairs) or not len(valid_pairs):
            raise ValueError(f"Nothing to do: {len(train_pairs)} training and {len(valid_pairs)} validation pairs.")
        assert arguments.output_folder is not None
        self.accelerator = accelerator
        self.tokenizer = tokenizer
        self.arguments = arguments
        self.train_pairs, self.valid_pairs, self.valid_texts = train_pairs, valid_pairs, valid_texts
        self.output_folder = Path(arguments.output_folder)
        self.log = RunLog(self.output_folder, arguments.tensorboard)
        self.objective = objective_for(model)
        self.whole_copy: PreTrainedModel | None = None
        if accelerator.is_fsdp2:
            self.whole_copy = copy.deepcopy(model).to(accelerator.device)
            model.set_input_embeddings(model.get_input_embeddings())  # Marian: one module instead of three, tied
        if arguments.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        # Neither compiled code nor what the backward pass computes again would see the mode.
        takes_mode = not arguments.torch_compile and not arguments.gradient_checkpointing
        is_on_cpu = accelerator.device.type == "cpu"
        self.operators = FastCpuTraining() if takes_mode and is_on_cpu else nullcontext()
        if arguments.torch_compile:
            _compile_layers(model)
        optimizer = torch.optim.Adam(
            model.parameters(),
            lr=arguments.learning_rate,
            betas=(0.9, 0.98),
            eps=arguments.adam_epsilon,
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.collator = TranslationCollator(tokenizer.pad_token_id)
        self.sampler = self._make_sampler(train_pairs, is_training=True)
        self.valid_sampler = self._make_sampler(valid_pairs, is_training=False)
        # Every epoch has as many batches: the order of equal lengths changes, the lengths do not.
        self.batches_per_epoch = len(self.sampler)
        self.max_steps = arguments.max_steps
        if arguments.max_epochs is not None:
            self.max_steps = arguments.max_epochs * self.batches_per_epoch // arguments.gradient_accumulation_steps
        self.progress = RunProgress()
        self.window = LogWindow()
        self.states = RunStates(accelerator, self.output_folder / "states")
        self.clock: Callable[[], float] = time.monotonic
        self._counted_until = self.clock()
        self._validation_seconds = self._state_seconds = 0.0  # that the last one took
        accelerator.register_for_checkpointing(self.progress)

    def _make_sampler(self, pairs: Dataset, is_training: bool) -> TokenBudgetBatchSampler:
        lengths = pair_lengths(pairs)
        arguments, accelerator = self.arguments, self.accelerator
        if not is_training:
            return TokenBudgetBatchSampler(*lengths, max_tokens=arguments.max_tokens_per_batch, seed=0)
        return TokenBudgetBatchSampler(
            *lengths,
            max_tokens=arguments.max_tokens_per_batch,
            seed=arguments.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            batches_per_step=arguments.gradient_accumulation_steps,
        )

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.progress.step

    @property
    def share(self) -> float:
        """Share of the run that is done, of its steps or of its minutes."""
        if self.arguments.max_minutes is not None:
            return min(1.0, self.progress.seconds / (60 * self.arguments.max_minutes))
        return self.step / self.max_steps

    def _count_time(self) -> float:
        """Add the time since the last call to that of the run, the main process's to that of all; seconds added."""
        before, now = self.progress.seconds, self.clock()
        seconds = torch.tensor(before + now - self._counted_until, dtype=torch.float64, device=self.accelerator.device)
        self.progress.seconds, self._counted_until = float(broadcast(seconds)), now
        return self.progress.seconds - before

    def resume(self) -> int:
        """Go on from the newest state in the output folder that can be loaded; return its step, 0 if there is none.

        Raises:
            FileNotFoundError: there is none, though the run has come far enough to have left one.
            RuntimeError: there are states, and none can be loaded.
        """
        if self.states.load_newest() is None and self.log.num_lines("valid") > 1:
            raise FileNotFoundError(
                f"There is no state to resume from in {self.states.folder}, and there must have been one: put it back, "
                "or give --overwrite to begin anew."
            )
        if self.progress.log_window:
            self.window.load_state_dict(self.progress.log_window)
        if self.accelerator.is_main_process:
            restore_replaced(self.output_folder / "best")
            self.log.cut_after(self.step)
            for folder in (self.output_folder / "checkpoints").glob(STEP_FOLDERS):
                if folder.name not in self.progress.checkpoint_scores:  # of a step that will be run again
                    shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        self.progress.is_finished = self.share >= 1
        if not (self.output_folder / "best").exists():  # a state that was carried here without it
            self.progress.best_metrics = {}
        return self.step

    def train(self) -> dict[str, float]:
        """Run all steps; return the figures of the best validation.

        Raises:
            NonFiniteError: checkpoints and states written until then stay.
            OSError: the disk is full; the same.
        """
        total = self.max_steps if self.arguments.max_minutes is None else None
        self.window.leave_out_pause()
        self._counted_until = self.clock()
        hidden = not self.accelerator.is_main_process
        with tqdm(total=total, initial=self.step, disable=hidden, unit="step", mininterval=1.0) as bar:
            while not self.progress.is_finished:
                self._train_epoch(bar)
        return self.progress.best_metrics

    def load_groups(self) -> Iterator[list[dict[str, torch.Tensor]]]:
        """The batches of this process that are left of the epoch, in groups, one for each step."""
        self.sampler.set_epoch(self.progress.epoch, num_batches_done=self.progress.num_batches_done)
        # A generator of its own: the loader would draw from the global one.
        loader = DataLoader(
            self.train_pairs,
            batch_sampler=self.sampler,
            collate_fn=self.collator,
            generator=torch.Generator(),
            num_workers=self.arguments.loading_workers,
        )
        return _groups(iter(loader), self.arguments.gradient_accumulation_steps)

    def _train_epoch(self, bar: tqdm) -> None:
        """The steps that are left of the epoch, or of the run; validations and states where they are due."""
        arguments, run, window = self.arguments, self.progress, self.window
        if run.num_batches_done == self.batches_per_epoch:
            run.epoch, run.num_batches_done = run.epoch + 1, 0
        groups = self.load_groups()
        self.model.train()
        for group in groups:
            loaded = time.perf_counter()
            sums, settings = self.optimizer_step(group)
            run.num_batches_done += len(group)
            self._count_time()
            window.add(sums, settings, seconds_loading=loaded - window.last_time)
            bar.update()
            if run.step % arguments.log_every_steps == 0:
                line = window.summary(self.objective)
                self._write_log("train", line)
                bar.set_postfix(loss=f"{line['loss']:.3f}", tok_s=f"{line['target_tokens_per_second']:.0f}")
            is_state_due = bool(arguments.save_every_steps) and run.step % arguments.save_every_steps == 0
            is_validation_due = self._is_validation_due()
            if is_validation_due or is_state_due:
                self._refuse_non_finite_weights()
            if is_validation_due:
                self._validate_and_keep(bar)
                run.is_finished, is_state_due = self.share >= 1, True
            if is_state_due:
                run.log_window = window.state_dict()
                self.states.save(run.step)
                self._state_seconds = self._count_time()
                window.leave_out_pause()
            if run.is_finished:
                break

    def _is_validation_due(self) -> bool:
        """Whether the run is at its end, or at a step that is validated and leaves time for it."""
        arguments, run = self.arguments, self.progress
        if arguments.validate_every_steps:
            is_its_turn = run.step % arguments.validate_every_steps == 0
        elif arguments.validate_every_minutes:
            is_its_turn = run.seconds - run.seconds_validated >= 60 * arguments.validate_every_minutes
        else:
            is_its_turn = run.num_batches_done == self.batches_per_epoch
        max_minutes = arguments.max_minutes
        # One that takes all the time that is left would leave the schedules unfinished.
        needed = self._validation_seconds + self._state_seconds
        is_time_left = max_minutes is None or run.seconds + needed < 60 * max_minutes
        return self.share >= 1 or (is_its_turn and is_time_left)

    def _validate_and_keep(self, bar: tqdm) -> None:
        """Validate, and keep the model as a checkpoint, and as the best if it is."""
        run = self.progress
        metrics = self.validate()
        selecting = [name for name in self.objective.selection_metrics if name in metrics]
        for name in selecting:
            if not math.isfinite(metrics[name]):
                self._stop(f"{name} of the validation set is {metrics[name]}.")
        selected_by = selecting[0]
        self._write_log("valid", metrics)
        if self.accelerator.is_main_process:
            values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            bar.write(f"epoch {run.epoch}, step {run.step}: {values}")
        folder = self.output_folder / "checkpoints" / f"step-{run.step:07d}"
        self._save(folder)
        run.checkpoint_scores[folder.name] = metrics[selected_by]
        self._remove_old_checkpoints()
        if not run.best_metrics or metrics[selected_by] > run.best_metrics[selected_by]:
            run.best_metrics = metrics
            self._save(self.output_folder / "best")
        self._validation_seconds = self._count_time()
        run.seconds_validated = run.seconds

    def _refuse_non_finite_weights(self) -> None:
        """Raise NonFiniteError in all processes if one of them has a weight, or a part, that is no finite number."""
        parameters = self.accelerator.unwrap_model(self.model).named_parameters()
        parts = {name: p.to_local() if hasattr(p, "to_local") else p for name, p in parameters}
        names = [name for name, part in parts.items() if not part.isfinite().all()]
        if self.accelerator.reduce(torch.tensor(len(names), device=self.accelerator.device), "sum"):
            self._stop(f"weights that are not finite, of {len(names)} names: {', '.join(names[:5])}.")

    def _stop(self, cause: str) -> NoReturn:
        raise NonFiniteError(
            f"Step {self.step}: {cause} This model was not kept; what was kept before is in {self.output_folder}. A "
            "smaller learning_rate or max_grad_norm may help."
        )

    def _seed_batch(self, index: int) -> None:
        """Make the random numbers of a batch its own; `index` counts this process's batches of the epoch."""
        number = index * self.accelerator.num_processes + self.accelerator.process_index
        sequence = np.random.SeedSequence([self.arguments.seed, self.progress.epoch, number])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    def optimizer_step(self, group: list[dict[str, torch.Tensor]]) -> tuple[dict[str, float], dict[str, float]]:
        """One step on the batches of a group; sums over all processes, and what the step was taken with."""
        arguments, accelerator = self.arguments, self.accelerator
        settings = settings_at(arguments, self.max_steps, self.step + 1, self.share)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = settings["learning_rate"]
        local_tokens = torch.tensor(sum(int((b["labels"] >= 0).sum()) for b in group), device=accelerator.device)
        num_target_tokens = int(accelerator.reduce(local_tokens, "sum"))
        totals: Counter[str] = Counter()
        for index, batch in enumerate(group):
            inputs = {name: batch[name].to(accelerator.device) for name in ("input_ids", "attention_mask", "labels")}
            is_last = index == len(group) - 1
            self._seed_batch(self.progress.num_batches_done + index)
            synchronisation = nullcontext() if is_last else accelerator.no_sync(self.model)
            with synchronisation, self.operators, accelerator.autocast():
                loss, sums = self.objective.training_loss(
                    self.model, inputs, num_target_tokens, arguments.label_smoothing, settings
                )
                # Gradients are averaged over processes; the loss is divided by the tokens of all of them already.
                accelerator.backward(loss * accelerator.num_processes)
            totals.update({**sums, "loss": loss.detach()})
        max_grad_norm = arguments.max_grad_norm if arguments.max_grad_norm > 0 else math.inf
        grad_norm = accelerator.clip_grad_norm_(self.model.parameters(), max_grad_norm)
        grad_norm = float(getattr(grad_norm, "full_tensor", lambda: grad_norm)())
        reduced = accelerator.reduce(torch.stack([torch.as_tensor(t).double() for t in totals.values()]), "sum")
        results = dict(zip(totals, reduced.tolist(), strict=True))
        if not math.isfinite(results["loss"]) or (accelerator.scaler is None and not math.isfinite(grad_norm)):
            rows = [int(row) for b in group for row in b["row_ids"]]
            raise NonFiniteError(
                f"Step {self.step + 1}: loss {results['loss']}, gradient norm {grad_norm}. Rows of the batch (from 0, "
                f"process {accelerator.process_index}): {rows}. The weights of this step were not changed; the last "
                f"checkpoints are in {self.output_folder}."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        return {**results, "grad_norm": grad_norm}, settings

    def _whole_model(self) -> PreTrainedModel:
        """The model with its weights; under FSDP, a copy with those of all shards, in every process."""
        if self.whole_copy is None:
            return self.accelerator.unwrap_model(self.model)
        weights = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True))
        self.whole_copy.load_state_dict(weights)
        return self.whole_copy

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Figures of the objective, nats per target token, the same noise each time; and BLEU.

        Every process does all of it, so that all know the result.
        """
        accelerator = self.accelerator
        model = self._whole_model()
        model.eval()
        generator = torch.Generator(device=accelerator.device).manual_seed(self.arguments.seed)
        totals: Counter[str] = Counter()
        for batch in DataLoader(self.valid_pairs, batch_sampler=self.valid_sampler, collate_fn=self.collator):
            inputs = {name: batch[name].to(accelerator.device) for name in ("input_ids", "attention_mask", "labels")}
            with accelerator.autocast():
                totals.update(self.objective.validation_sums(model, inputs, generator))
        metrics = self.objective.figures({name: float(total) for name, total in totals.items()})
        metrics.update(self._validation_bleu(model))
        model.train()
        return metrics

    def _validation_bleu(self, model: PreTrainedModel) -> dict[str, float]:
        """BLEU (13a, cased) of evenly spaced validation sentences, for each decoding of the objective."""
        sources, targets = self.valid_texts
        if not self.arguments.valid_bleu_sentences:
            return {}
        # Not the first ones: a file may be sorted by length.
        rows = evenly_spaced(len(sources), self.arguments.valid_bleu_sentences)
        sources, targets = [sources[row] for row in rows], [targets[row] for row in rows]
        metrics = {}
        for name, generate_arguments in self.objective.decodings.items():
            with self.accelerator.autocast():
                hypotheses = translate_texts(model, self.tokenizer, sources, **generate_arguments)
            metrics[name] = corpus_scores(hypotheses, targets)["bleu"]["score"]
        return metrics

    def _write_log(self, kind: str, figures: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            run = self.progress
            where = {"epoch": run.epoch, "step": run.step, "minutes": run.seconds / 60}
            self.log.write({"kind": kind, **where, **figures})

    def _save(self, folder: Path) -> None:
        """Model and tokenizer to a folder, which appears whole or not at all."""
        accelerator = self.accelerator
        accelerator.wait_for_everyone()
        model = self._whole_model()
        if accelerator.is_main_process:
            with atomic_folder(folder) as unfinished:
                model.save_pretrained(unfinished)
                self.tokenizer.save_pretrained(unfinished)
        accelerator.wait_for_everyone()

    def _remove_old_checkpoints(self) -> None:
        if self.accelerator.is_main_process:
            scores, arguments = self.progress.checkpoint_scores, self.arguments
            checkpoints = sorted((self.output_folder / "checkpoints").glob(STEP_FOLDERS))
            best = sorted(checkpoints, key=lambda folder: scores[folder.name], reverse=True)
            kept = {*checkpoints[max(0, len(checkpoints) - arguments.keep_last_checkpoints) :]}
            for folder in set(checkpoints) - kept - {*best[: arguments.keep_best_checkpoints]}:
                shutil.rmtree(folder)


def _compile_layers(model: torch.nn.Module) -> None:
    """Compile each layer of the stacks, in place, for any length: names of weights and checkpoints stay as they are.

    Not the model as a whole: its budget changes with every step, and layers alike are compiled once for all.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            for layer in module:
                layer.compile(dynamic=True)


def _groups(batches: Iterator, size: int) -> Iterator[list]:
    """Lists of `size` consecutive batches."""
    while group := list(islice(batches, size)):
        yield group
