"""The training loop: the ELBO with its KL budget (Shu et al., 2020, Eq. 5, 9, 10), validated and kept each epoch."""

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lvnar_hf import LvnarForConditionalGeneration
from lvnar_hf.losses_lvnar import kl_budget_at
from training.batching import TokenBudgetBatchSampler, TranslationCollator
from training.outputs import refuse_existing
from training.recipe import OptimizationArguments
from training.scoring import corpus_scores, translate_texts

PARTS = ("token_nll", "kl", "budgeted_kl", "length_nll", "elbo")


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient is no number; the message names the step and the rows of the batch."""


def learning_rate_factor(step: int, warmup_steps: int, max_steps: int, cooldown_steps: int = 0) -> float:
    """Share of the peak learning rate at a step, from 1: linear warm-up, then inverse square root.

    In the last `cooldown_steps` of `max_steps` it is multiplied by a factor that falls to 0 in a line.
    """
    warmup_steps = max(warmup_steps, 1)
    factor = min(step / warmup_steps, math.sqrt(warmup_steps / step)) if step else 0.0
    if cooldown_steps:
        factor *= min(1.0, max(0, max_steps + 1 - step) / cooldown_steps)
    return factor


def check_same_run(folder: Path, description: dict[str, Any]) -> None:
    """Refuse to resume a run with other settings than those it was begun with, which `run.json` holds.

    Raises:
        ValueError: names each setting that differs, with both values.
    """
    file = folder / "run.json"
    begun_with = json.loads(file.read_text("utf-8")) if file.exists() else {}
    names = sorted(begun_with.keys() | description.keys())
    different = [
        f"{name}: {begun_with.get(name)!r} then, {description.get(name)!r} now"
        for name in names
        if begun_with.get(name) != description.get(name)
    ]
    if different:
        raise ValueError(f"The run in {folder} was begun with other settings. " + "; ".join(different))


def prepare_output_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with something in it; or, with `overwrite`, remove what an earlier run has written there.

    Raises:
        FileExistsError: if the folder is not empty and `overwrite` is False.
    """
    refuse_existing(folder, overwrite, "--output_folder (or --resume)")
    for name in ("log.jsonl", "run.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("checkpoints", "best", "states"):
        shutil.rmtree(folder / name, ignore_errors=True)


@dataclass
class RunProgress:
    """Where a run stands; saved and loaded with its state."""

    step: int = 0
    epoch: int = 0
    num_batches_done: int = 0  # of the epoch, by each process
    is_finished: bool = False
    best_metrics: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class LvnarTrainer:
    """Trains a model on tokenised pairs; `training/train.py` is its command.

    Args:
        accelerator: decides device, processes and precision.
        model: to be trained.
        tokenizer: saved beside every checkpoint, and used to score validation translations.
        train_pairs, valid_pairs: what `training.data.tokenize_pairs` returns.
        valid_texts: (source, target) texts for BLEU, in the order of the validation files.
        arguments: section `training` of the recipe.

    What it writes to the output folder: `log.jsonl`, `checkpoints/step-N`, `best`; and `states/step-N`, from which the
    run can be continued as if it had never stopped.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: LvnarForConditionalGeneration,
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
        if arguments.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.Adam(
            model.parameters(),
            lr=arguments.learning_rate,
            betas=(0.9, 0.98),
            eps=arguments.adam_epsilon,
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.collator = TranslationCollator(tokenizer.pad_token_id)
        self.sampler = TokenBudgetBatchSampler(
            train_pairs.with_format("numpy")["source_length"][:],
            train_pairs.with_format("numpy")["target_length"][:],
            max_tokens=arguments.max_tokens_per_batch,
            seed=arguments.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        self.valid_sampler = TokenBudgetBatchSampler(
            valid_pairs.with_format("numpy")["source_length"][:],
            valid_pairs.with_format("numpy")["target_length"][:],
            max_tokens=arguments.max_tokens_per_batch,
            seed=0,
        )
        self.progress = RunProgress()
        accelerator.register_for_checkpointing(self.progress)

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.progress.step

    def has_state(self) -> bool:
        """Whether the run has come far enough to leave a state in the output folder."""
        return bool(self._states())

    def _states(self) -> list[Path]:
        return sorted((self.output_folder / "states").glob("step-" + "[0-9]" * 7))

    def resume(self) -> int:
        """Go on from the newest state in the output folder; return its step.

        Raises:
            FileNotFoundError: if there is none.
        """
        states = self._states()
        if not states:
            raise FileNotFoundError(f"There is no state to resume from in {self.output_folder / 'states'}.")
        self.accelerator.load_state(str(states[-1]))
        if self.accelerator.is_main_process:
            log = self.output_folder / "log.jsonl"
            lines = log.read_text("utf-8").splitlines() if log.exists() else []
            kept = [line for line in lines if _is_logged_by(line, self.step)]  # what came after will be run again
            log.write_text("".join(line + "\n" for line in kept), "utf-8")
        self.accelerator.wait_for_everyone()
        return self.step

    def train(self) -> dict[str, float]:
        """Run all `max_steps`; return the metrics of the best validation.

        Raises:
            NonFiniteLossError: checkpoints written until then stay.
        """
        is_main = self.accelerator.is_main_process
        run, max_steps = self.progress, self.arguments.max_steps
        window = _LogWindow()
        with tqdm(total=max_steps, initial=run.step, disable=not is_main, unit="step", mininterval=1.0) as bar:
            while not run.is_finished:
                self._train_epoch(window, bar)
                metrics = self.validate()
                self._log({"kind": "valid", "epoch": run.epoch, "step": run.step, **metrics})
                if is_main:
                    values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
                    bar.write(f"epoch {run.epoch}, step {run.step}: {values}")
                self._save(self.output_folder / "checkpoints" / f"step-{run.step:07d}")
                self._remove_old_checkpoints()
                if not run.best_metrics or metrics["elbo"] > run.best_metrics["elbo"]:
                    run.best_metrics = metrics
                    self._save(self.output_folder / "best")
                run.epoch, run.num_batches_done = run.epoch + 1, 0
                run.is_finished = run.step == max_steps
                self._save_state()
                window.leave_out_pause()
        return run.best_metrics

    def _train_epoch(self, window: "_LogWindow", bar: tqdm) -> None:
        """The steps that are left of the epoch, or of the run."""
        arguments, run = self.arguments, self.progress
        self.sampler.set_epoch(run.epoch, num_batches_done=run.num_batches_done)
        # A generator of its own: the loader would draw from the global one, and a resumed run would differ.
        loader = DataLoader(
            self.train_pairs, batch_sampler=self.sampler, collate_fn=self.collator, generator=torch.Generator()
        )
        self.model.train()
        if run.step == arguments.max_steps:
            return
        for group in _groups(iter(loader), arguments.gradient_accumulation_steps):
            loaded = time.perf_counter()
            entry = self._optimizer_step(group)
            run.num_batches_done += len(group)
            window.add(entry, seconds_loading=loaded - window.last_time)
            bar.update()
            if run.step % arguments.log_every_steps == 0:
                line = window.summary()
                self._log({"kind": "train", "epoch": run.epoch, "step": run.step, **line})
                bar.set_postfix(loss=f"{line['loss']:.3f}", tok_s=f"{line['target_tokens_per_second']:.0f}")
            if run.step == arguments.max_steps:
                break
            if arguments.save_every_steps and run.step % arguments.save_every_steps == 0:
                self._save_state()
                window.leave_out_pause()

    def _optimizer_step(self, group: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        """One step on the batches of a group; sums over the batch of all processes, and what the step used."""
        arguments, accelerator = self.arguments, self.accelerator
        kl_budget = kl_budget_at(self.step, arguments.max_steps, arguments.initial_kl_budget)
        learning_rate = arguments.learning_rate * learning_rate_factor(
            self.step + 1, arguments.warmup_steps, arguments.max_steps, arguments.cooldown_steps
        )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate
        local_tokens = torch.tensor(sum(int((b["labels"] >= 0).sum()) for b in group), device=accelerator.device)
        num_target_tokens = int(accelerator.reduce(local_tokens, "sum"))
        totals = torch.zeros(len(PARTS) + 4, dtype=torch.float64, device=accelerator.device)
        for index, batch in enumerate(group):
            batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
            is_last = index == len(group) - 1
            with nullcontext() if is_last else accelerator.no_sync(self.model), accelerator.autocast():
                output = self.model(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    labels=batch["labels"],
                    kl_budget=kl_budget,
                    smoothing=arguments.label_smoothing,
                    num_items_in_batch=num_target_tokens,
                )
                # Gradients are averaged over processes; the loss is divided by the tokens of all of them already.
                accelerator.backward(output.loss * accelerator.num_processes)
            parts = [output[name].detach().double().sum() for name in PARTS]
            extras = (output.loss, output.length_accuracy.sum(), batch["attention_mask"].sum())
            sentences = torch.tensor(float(len(batch["labels"])), device=accelerator.device)
            totals += torch.stack([*parts, *(e.detach().double() for e in extras), sentences.double()])
        if arguments.max_grad_norm > 0:
            grad_norm = accelerator.clip_grad_norm_(self.model.parameters(), arguments.max_grad_norm)
        else:
            grad_norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        totals = accelerator.reduce(totals, "sum")
        loss = float(totals[len(PARTS)])
        if not math.isfinite(loss) or (accelerator.scaler is None and not math.isfinite(float(grad_norm))):
            rows = [int(row) for b in group for row in b["row_ids"]]
            raise NonFiniteLossError(
                f"Step {self.step + 1}: loss {loss}, gradient norm {float(grad_norm)}. Rows of the batch (from 0, "
                f"process {accelerator.process_index}): {rows}. The weights of this step were not changed; the last "
                f"checkpoints are in {self.output_folder}."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        sums = dict(
            zip((*PARTS, "loss", "length_accuracy", "source_tokens", "sentences"), totals.tolist(), strict=True)
        )
        return {
            **sums,
            "target_tokens": num_target_tokens,
            "grad_norm": float(grad_norm),
            "learning_rate": learning_rate,
            "kl_budget": kl_budget,
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """ELBO and its parts, nats a target token, one latent sample a sentence, the same noise each time; BLEU."""
        accelerator = self.accelerator
        model = accelerator.unwrap_model(self.model)
        model.eval()
        generator = torch.Generator(device=accelerator.device).manual_seed(self.arguments.seed)
        totals = torch.zeros(len(PARTS) + 3, dtype=torch.float64, device=accelerator.device)
        for batch in DataLoader(self.valid_pairs, batch_sampler=self.valid_sampler, collate_fn=self.collator):
            inputs = {n: batch[n].to(accelerator.device) for n in ("input_ids", "attention_mask", "labels")}
            with accelerator.autocast():
                output = model(**inputs, generator=generator)
            totals += torch.stack(
                [
                    *(output[name].double().sum() for name in PARTS),
                    output.length_accuracy.double().sum(),
                    output.num_target_tokens.double(),
                    torch.tensor(float(len(batch["labels"])), device=accelerator.device).double(),
                ]
            )
        *parts, correct_lengths, num_target_tokens, num_sentences = totals.tolist()
        metrics = {name: part / num_target_tokens for name, part in zip(PARTS, parts, strict=True)}
        del metrics["budgeted_kl"]  # there is no budget in validation
        metrics["length_accuracy"] = correct_lengths / num_sentences
        metrics.update(self._validation_bleu(model))
        model.train()
        return metrics

    def _validation_bleu(self, model: LvnarForConditionalGeneration) -> dict[str, float]:
        """BLEU (13a, cased) of validation sentences taken at even distances, with no and with one refinement step."""
        sources, targets = self.valid_texts
        if not self.arguments.valid_bleu_sentences:
            return {}
        # Not the first ones: a file may be sorted by length.
        every = max(1, len(sources) // self.arguments.valid_bleu_sentences)
        sources, targets = sources[::every], targets[::every]
        metrics = {}
        for num_steps in (0, 1):
            with self.accelerator.autocast():
                hypotheses = translate_texts(model, self.tokenizer, sources, num_refinement_steps=num_steps)
            metrics[f"bleu_{num_steps}_steps"] = corpus_scores(hypotheses, targets)["bleu"]["score"]
        return metrics

    def _log(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.output_folder.mkdir(parents=True, exist_ok=True)
            with (self.output_folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _save(self, folder: Path) -> None:
        """Model and tokenizer to a folder, which appears whole or not at all."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.unwrap_model(self.model).save_pretrained(unfinished)
        self.tokenizer.save_pretrained(unfinished)
        if folder.exists():
            replaced = folder.with_name(folder.name + ".replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(folder, replaced)
            os.rename(unfinished, folder)
            shutil.rmtree(replaced)
        else:
            os.rename(unfinished, folder)

    def _save_state(self) -> None:
        """All that the rest of the run depends on: weights, optimizer, random numbers of every process, progress.

        The folder appears under its name when it is whole; then older ones go.
        """
        folder = self.output_folder / "states" / f"step-{self.step:07d}"
        unfinished = folder.with_name(folder.name + ".unfinished")
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)  # of a step that was saved before its epoch's validation
            os.rename(unfinished, folder)
            for other in folder.parent.iterdir():
                if other != folder:
                    shutil.rmtree(other)

    def _remove_old_checkpoints(self) -> None:
        if self.accelerator.is_main_process:
            checkpoints = sorted((self.output_folder / "checkpoints").glob("step-*"))
            for folder in checkpoints[: -self.arguments.keep_last_checkpoints or None]:
                shutil.rmtree(folder)


def _is_logged_by(line: str, step: int) -> bool:
    """Whether a line of the log is whole and of a step up to `step`."""
    try:
        return json.loads(line)["step"] <= step
    except json.JSONDecodeError:  # cut off when the process was killed
        return False


def _groups(batches: Iterator, size: int) -> Iterator[list]:
    """Lists of `size` consecutive batches; the last may be shorter."""
    while group := list(islice(batches, size)):
        yield group


class _LogWindow:
    """Sums over the steps since the last line of the log."""

    def __init__(self) -> None:
        self.entries: list[dict[str, float]] = []
        self.seconds_loading = 0.0
        self.start = self.last_time = time.perf_counter()

    def leave_out_pause(self) -> None:
        """Not count the time since the last step, in which something else was done."""
        now = time.perf_counter()
        self.start, self.last_time = self.start + (now - self.last_time), now

    def add(self, entry: dict[str, float], seconds_loading: float) -> None:
        self.entries.append(entry)
        self.seconds_loading += seconds_loading
        self.last_time = time.perf_counter()

    def summary(self) -> dict[str, float]:
        """Means over the steps: the parts in nats a target token, speeds a second; then start anew."""
        seconds = self.last_time - self.start
        total = {name: sum(entry[name] for entry in self.entries) for name in self.entries[0]}
        line = {name: total[name] / total["target_tokens"] for name in PARTS}
        line |= {
            "loss": total["loss"] / len(self.entries),
            "kl_per_source_position": total["kl"] / total["source_tokens"],
            "length_accuracy": total["length_accuracy"] / total["sentences"],
            "grad_norm": total["grad_norm"] / len(self.entries),
            "learning_rate": self.entries[-1]["learning_rate"],
            "kl_budget": self.entries[-1]["kl_budget"],
            "target_tokens_per_second": total["target_tokens"] / seconds,
            "loading_share": self.seconds_loading / seconds,
        }
        self.entries, self.seconds_loading = [], 0.0
        self.start = self.last_time
        return line
