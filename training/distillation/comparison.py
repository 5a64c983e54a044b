"""How fast each engine translates the same sentences with the same settings, and how good and how equal they are."""

import copy
import statistics
import time
from dataclasses import asdict
from typing import Any

import torch

from training.data.corpora import TextPairs
from training.data.evaluation_sets import evenly_spaced
from training.distillation.backends import SearchSettings, TeacherEngine, TeacherOutput, make_engine
from training.distillation.teacher import Teacher
from training.translation_quality.bleu import corpus_scores

WARM_UP_SENTENCES = 16


def compare_engines(
    pairs: TextPairs,
    teacher: Teacher,
    search: SearchSettings,
    compute_type: str,
    device: torch.device,
    num_sentences: int,
    num_rounds: int,
) -> dict[str, Any]:
    """Times of both engines in turns, the median over rounds, from token ids to token ids; loading is not in them.

    CTranslate2 is timed in float32, and in `compute_type` if that is another; transformers in float32 with its own rule
    of when a search is over, and with CTranslate2's (`early_stopping=True`), by which "equal" is counted.

    Args:
        pairs: evenly spaced sentences are taken from it.
        num_sentences: how many at most.
        num_rounds: times that each engine translates all of them.
    """
    chosen = set(evenly_spaced(len(pairs), num_sentences))
    rows = [row for row in pairs if row["row_id"] in chosen]
    all_ids = teacher.tokenizer([row["source"] for row in rows], verbose=False)["input_ids"]
    limit = teacher.max_source_length
    encoded = [
        (ids, reference)
        for ids, reference in zip(all_ids, (row["target"] for row in rows), strict=True)
        if limit is None or len(ids) <= limit
    ]
    encoded.sort(key=lambda pair: -len(pair[0]))
    source_ids, references = [ids for ids, _ in encoded], [reference for _, reference in encoded]

    stopping_early = copy.copy(teacher)
    stopping_early.model = copy.deepcopy(teacher.model)
    stopping_early.model.generation_config.early_stopping = True
    engines: dict[str, TeacherEngine] = {
        "transformers": make_engine("transformers", teacher, search, "default", device),
        "transformers, early_stopping": make_engine("transformers", stopping_early, search, "default", device),
        "ctranslate2 float32": make_engine("ctranslate2", teacher, search, "float32", device),
    }
    if compute_type not in ("default", "float32"):
        engines[f"ctranslate2 {compute_type}"] = make_engine("ctranslate2", teacher, search, compute_type, device)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    outputs: dict[str, list[TeacherOutput]] = {}
    for engine in engines.values():
        engine.translate(source_ids[-WARM_UP_SENTENCES:])
    for _ in range(num_rounds):
        for name, engine in engines.items():
            start = time.perf_counter()
            outputs[name] = engine.translate(source_ids)  # ids are on the CPU when it returns
            seconds[name].append(time.perf_counter() - start)

    times = {name: statistics.median(values) for name, values in seconds.items()}
    results = {}
    for name, engine in engines.items():
        texts = teacher.tokenizer.batch_decode([output.ids for output in outputs[name]], skip_special_tokens=True)
        results[name] = {
            **engine.description,
            "seconds": seconds[name],
            "sentences_per_second": len(source_ids) / times[name],
            "times_as_fast_as_transformers": times["transformers"] / times[name],
            "equal_to_transformers": _share_of_equal(outputs[name], outputs["transformers"]),
            "equal_to_transformers_early_stopping": _share_of_equal(
                outputs[name], outputs["transformers, early_stopping"]
            ),
            "cut": sum(output.is_cut for output in outputs[name]),
            "bleu": corpus_scores(texts, references)["bleu"],
        }
    return {
        "teacher": teacher.name,
        "teacher_fingerprint": teacher.fingerprint,
        "sentences": len(source_ids),
        "source_tokens": sum(map(len, source_ids)),
        **asdict(search),
        "engines": results,
    }


def _share_of_equal(outputs: list[TeacherOutput], others: list[TeacherOutput]) -> float:
    return sum(one == other for one, other in zip(outputs, others, strict=True)) / len(outputs)
