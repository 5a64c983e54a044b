"""The translations of a student that its teacher likes best: text for the student to learn from in a second round.

    C(x) = the n likeliest translations of a beam over the cells of the student's last refinement step
    ŷ(x) = argmax log p(y | x) / |y|  over C(x)                            p: the teacher's
    the teacher's own translation     if ŷ(x) has less than `least_log_prob` nats a token, or other digits than x

What both find likely is better than what either says by itself, in words that the student can say; what the student
alone says is often no word.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lvnar_hf.decoding import make_batches
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.search import CELL_FILES, RESCORER_FILES, OnnxRescorer
from lvnar_hf.loading import load_model, load_tokenizer
from training.distillation.backends import StudentSettings, TeacherEngine, TeacherOutput
from training.distillation.teacher import Teacher


class StudentEngine:
    """A `TeacherEngine` of a student, its teacher's rescoring, and for the rest the teacher's own engine.

    On the CPU the graphs of both in int8 are used, if `lvnar export` has made them (`--search` for the student).

    Args:
        own: translates what the student cannot.
        teacher: rescores.
        student: a model with alignment "ctc" and the teacher's tokenizer, and its search.
        max_batch_tokens: of source, padding included.
        device: of PyTorch.

    Raises:
        ValueError: the student has another vocabulary than the teacher, or no alignment "ctc".
    """

    name = "student"

    def __init__(
        self,
        own: TeacherEngine,
        teacher: Teacher,
        student: StudentSettings,
        max_batch_tokens: int,
        device: torch.device | str,
    ):
        self.own, self.tokenizer, self.settings = own, teacher.tokenizer, student
        self.max_batch_tokens, self.device = max_batch_tokens, torch.device(device)
        files = Path(student.folder) / CELL_FILES["int8"], Path(teacher.name) / RESCORER_FILES["int8"]
        has_graphs = self.device.type == "cpu" and all(file.is_file() for file in files)
        self.model: Any
        rescorer: Any
        if has_graphs:
            self.model = LvnarOnnxModel.from_pretrained(student.folder, precision="int8", search=True)
            rescorer = OnnxRescorer.from_pretrained(teacher.name, num_threads=torch.get_num_threads())
        else:
            self.model = load_model(student.folder, dtype=torch.float32).eval().to(self.device)
            rescorer = teacher.model.to(self.device)
        if getattr(self.model.config, "alignment", None) != "ctc":
            raise ValueError(f"{student.folder} has no alignment 'ctc', and so no beam.")
        if not _are_same(load_tokenizer(student.folder), self.tokenizer):
            raise ValueError(f"{student.folder} has another vocabulary than its teacher, {teacher.name}.")
        self.options = {
            "beam_size": student.beam_size,
            "num_refinement_steps": student.num_refinement_steps,
            "rescorer": rescorer,
        }
        self.description = {
            "engine": self.name,
            "int8_graphs": has_graphs,
            "own": own.description,
        }

    @torch.no_grad()
    def translate(
        self, source_ids: Sequence[list[int]], on_progress: Callable[[int], None] = lambda tokens: None
    ) -> list[TeacherOutput]:
        """See `TeacherEngine`; the progress of what the teacher translates is told when the student's is done."""
        chosen: list[list[int] | None] = []
        for batch in make_batches([len(ids) for ids in source_ids], self.max_batch_tokens):
            rows = [source_ids[index] for index in batch]
            chosen += self._choose(rows)
            on_progress(sum(len(ids) for ids, of in zip(rows, chosen[batch.start :], strict=True) if of is not None))
        left = [index for index, of in enumerate(chosen) if of is None]
        own = dict(zip(left, self.own.translate([source_ids[index] for index in left], on_progress), strict=True))
        return [own[index] if of is None else TeacherOutput(of, False) for index, of in enumerate(chosen)]

    def _choose(self, rows: list[list[int]]) -> list[list[int] | None]:
        """Of each source the candidate, or None."""
        inputs = self.tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt").to(self.device)
        output = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            return_dict_in_generate=True,
            **self.options,
        )
        special = set(self.tokenizer.all_special_ids)
        candidates = [[token for token in row if token not in special] for row in output.sequences.tolist()]
        texts = self.tokenizer.batch_decode(candidates, skip_special_tokens=True)
        sources = [self.tokenizer.decode(ids, skip_special_tokens=True, use_source_tokenizer=True) for ids in rows]
        return [
            ids if score >= self.settings.least_log_prob and ids and digits_of(text) == digits_of(source) else None
            for ids, score, text, source in zip(
                candidates, output.candidate_scores[:, 0].tolist(), texts, sources, strict=True
            )
        ]


def _are_same(tokenizer: Any, other: Any) -> bool:
    """Whether two tokenizers give the same ids, as far as their vocabularies and a few texts say."""
    texts = ["A first text, and 2 a.m.", "Ä ß 漢字 かな"]
    (ids, labels), (other_ids, other_labels) = (
        (one(texts)["input_ids"], one(text_target=texts)["input_ids"]) for one in (tokenizer, other)
    )
    return tokenizer.get_vocab() == other.get_vocab() and ids == other_ids and labels == other_labels


def digits_of(text: str) -> list[str]:
    """The digits of a text, of any width, sorted."""
    return sorted(re.findall("[0-9]", unicodedata.normalize("NFKC", text)))
