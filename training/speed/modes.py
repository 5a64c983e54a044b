"""The two benchmarks: random weights at the paper's sizes, and trained models on real sentences.

What is unusual: with random weights the sentences are lengths alone, those of newstest2014, and every system is checked
to have done exactly these, and every refinement step asked for. With trained models the lengths are each system's own,
and quality stands beside speed.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from lvnar_hf import LvnarConfig
from lvnar_hf.engines.onnx_export import export_onnx
from lvnar_hf.engines.shortlist import Shortlist
from training.data.evaluation_sets import TestSet, evenly_spaced
from training.distillation.backends import EngineError, convert_to_ctranslate2, load_teacher, why_not_ctranslate2
from training.speed.arguments import TimingArguments
from training.speed.forced_lengths import (
    Sample,
    TokenCode,
    make_lvnar,
    make_marian,
    make_random_shortlist,
    sample_batches,
)
from training.speed.systems import (
    SHORTLIST_ENGINE,
    VOCABULARY_MAP_ENGINE,
    SystemSpec,
    lvnar_specs,
    marian_name,
    marian_specs,
    select_systems,
)
from training.speed.timing import (
    Played,
    TurnKey,
    find_crossovers,
    harness_share,
    play_rounds,
    summarise_latency,
    summarise_throughput,
)
from training.speed.workers import Player, Turn, TurnResult, Worker, WorkerProcess
from training.translation_quality.measures import corpus_scores

RANDOM_LAYERS = ((6, 6), (12, 1))  # of encoder and decoder
QUALITY_BATCH_SIZE = 32
CALIBRATION_SENTENCES = 32  # at most, on which the confidence of a random shortlist is set
BASELINE_SETTING = "transformers, beam 3"


@contextmanager
def working(specs: Sequence[SystemSpec]) -> Iterator[dict[str, Worker]]:
    """Every system in its process, loaded, by name; the processes end with the block."""
    processes: dict[str, WorkerProcess] = {}
    try:
        for name in dict.fromkeys(spec.process for spec in specs):
            processes[name] = WorkerProcess([spec for spec in specs if spec.process == name])
        for process in tqdm(processes.values(), desc="loading", unit="process"):
            process.wait()
        yield {spec.name: Worker(spec, processes[spec.process]) for spec in specs}
    finally:
        for process in processes.values():
            process.close()


def _convert(
    model: PreTrainedModel, converted: Path, specs: Sequence[SystemSpec], shortlist: Shortlist | None = None
) -> None:
    """Write the conversions to CTranslate2 that the systems need, the lists of the shortlist as its vocabulary map."""
    for engine in sorted({spec.engine for spec in specs if Path(spec.folder).parent == converted}):
        folder, (_, compute_type, *rest) = converted / engine, engine.split()
        folder.mkdir(parents=True)
        vocabulary_map = None
        if rest and shortlist is not None:
            vocabulary_map = converted / "vocabulary_map.txt"
            vocabulary_map.write_text(format_vocabulary_map(shortlist, model.config), "utf-8")
        convert_to_ctranslate2(model, str(folder), None if compute_type == "float32" else compute_type, vocabulary_map)


def format_vocabulary_map(shortlist: Shortlist, config: PretrainedConfig) -> str:
    """In CTranslate2's format, ids as strings: a line a source token, and one without, of what is always tried.

    Args:
        config: of the autoregressive model.
    """
    lines = {"": {*shortlist.frequent.tolist(), config.eos_token_id}}
    for source, candidates in enumerate(shortlist.candidates.tolist()):
        lines[str(source)] = {*candidates} - {config.pad_token_id}
    return "".join(f"{source}\t{' '.join(map(str, sorted(tokens)))}\n" for source, tokens in lines.items())


def _export(model: PreTrainedModel, folder: Path, specs: Sequence[SystemSpec], shortlist: Shortlist | None) -> None:
    """Write the model's ONNX graphs, if a system needs them, and what stands beside them."""
    if any(spec.folder == str(folder) for spec in specs):
        export_onnx(model, folder)
        if shortlist is not None:
            shortlist.save(folder)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)


def run_random(
    arguments: TimingArguments, config: LvnarConfig, lengths: Sequence[tuple[int, int]], folder: Path, seed: int = 0
) -> dict[str, Any]:
    """Speed alone: random weights, forced lengths.

    Args:
        arguments: what is timed.
        config: sizes of this model; the baselines have its vocabulary, width and heads.
        lengths: source and target tokens of each sentence of the test set, `</s>` included.
        folder: for the models, while this runs.
        seed: of weights and sources.

    Returns:
        A mode of the benchmark's JSON.

    Raises:
        RuntimeError: a system did not do the lengths or the refinement steps.
        ValueError, ImportError: for systems that cannot be had.
    """
    widest = config.max_length_offset
    order = [index for index, (source, target) in enumerate(lengths) if abs(target - source) <= widest]
    order.sort(key=lambda index: lengths[index])
    samples = [sample_batches(order, size, arguments.num_timed_sentences or 10) for size in arguments.batch_sizes]
    timed = sorted({index for sample in samples for index in sample.indices})
    offsets = [lengths[index][1] - lengths[index][0] for index in timed]
    code = TokenCode(config.vocab_size, max(lengths[index][1] for index in timed), min(offsets), max(offsets))

    lvnar = make_lvnar(config, code, seed)
    marians = {layers: make_marian(config, layers, code, seed) for layers in RANDOM_LAYERS}
    exported = folder / "lvnar-onnx"
    specs = lvnar_specs(
        str(folder / "lvnar"), str(exported), has_shortlist=True, remove_repetitions=False, **arguments.common()
    )
    for marian in marians.values():
        name = marian_name(marian).replace(" ", "-")
        converted = folder / f"{name}-converted"
        specs += marian_specs(str(folder / name), converted, marian, has_shortlist=True, **arguments.common())
    specs = select_systems(specs, arguments.systems)
    lvnar.save_pretrained(folder / "lvnar")
    generator = torch.Generator().manual_seed(seed)
    sources = dict(zip(timed, code.make_sources([lengths[index] for index in timed], generator), strict=True))
    shortlist: Shortlist | None = None
    if any(spec.engine in (SHORTLIST_ENGINE, VOCABULARY_MAP_ENGINE) for spec in specs):
        chosen = [timed[i] for i in evenly_spaced(len(timed), min(CALIBRATION_SENTENCES, len(timed)))]
        shortlist = make_random_shortlist(lvnar, code, [sources[index] for index in chosen])
    _export(lvnar, exported, specs, shortlist)
    for marian in marians.values():
        name = marian_name(marian).replace(" ", "-")
        marian.save_pretrained(folder / name)
        _convert(marian, folder / f"{name}-converted", specs, shortlist)
    models = {"lvnar": lvnar, **{marian_name(marian): marian for marian in marians.values()}}
    described = {name: {"num_parameters": model.num_parameters()} for name, model in models.items()}
    del lvnar, marians, models

    shortest = min(timed, key=lambda index: lengths[index])
    turns: dict[TurnKey, Turn] = {
        ("model", sample.batch_size): Turn(
            [[sources[index] for index in batch] for batch in sample.batches], warm_up=[sources[shortest]]
        )
        for sample in samples
    }
    expected = {sample.batch_size: [lengths[index][1] for index in sample.indices] for sample in samples}

    def check(player: Player, key: TurnKey, result: TurnResult) -> None:
        done = [len(row) for batch in result.outputs for row in batch]
        check_lengths(player.spec, done, expected[key[1]], result.num_refinements)

    with working(specs) as workers:
        played = play_rounds(workers, turns, arguments.num_repeats, arguments.max_minutes * 60, check, "random weights")
        systems = describe_systems(workers, played, samples)
    return {
        "what": (
            "Random weights at the paper's sizes; from token ids to token ids, without tokenizer and loading. Lengths "
            "are those of newstest2014, English to German: every system translates each sentence into exactly as many "
            "tokens as its reference has, and takes every refinement step. The weights are random but for a code that "
            "makes them do so; the products are those of any weights."
        ),
        "models": described,
        "num_left_out": len(lengths) - len(order),
        **describe_run(arguments, systems, played, samples, lengths),
    }


def check_lengths(spec: SystemSpec, lengths: Sequence[int], expected: Sequence[int], num_refinements: int) -> None:
    """Raise RuntimeError unless a system gave exactly the expected numbers of tokens and took every refinement step."""
    for index, (given, wanted) in enumerate(zip(lengths, expected, strict=True)):
        if given != wanted:
            raise RuntimeError(f"{spec.name}: {given} tokens instead of {wanted} for sentence {index} of its turn.")
    wanted_steps = spec.setting * len(expected) if spec.family == "lvnar" else 0
    if num_refinements != wanted_steps:
        raise RuntimeError(f"{spec.name}: {num_refinements} refinement steps instead of {wanted_steps}.")


def run_trained(
    arguments: TimingArguments, model: str, teachers: Sequence[str], test_set: TestSet, folder: Path
) -> dict[str, Any]:
    """Quality beside speed: trained models, real sentences, each with its own lengths.

    Args:
        arguments: what is timed.
        model: folder or Hub id of a model of this package, with its tokenizer.
        teachers: the same of autoregressive models.
        test_set: sentences to translate; all count for the quality, a sample of them is timed.
        folder: for conversions, while this runs.

    Returns:
        A mode of the benchmark's JSON.

    Raises:
        EngineError: a teacher that CTranslate2 cannot translate with, where that is asked for.
        ValueError, ImportError: for systems that cannot be had.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    lvnar = AutoModelForSeq2SeqLM.from_pretrained(model)
    if lvnar.config.model_type != "lvnar":
        raise ValueError(f"{model} is a {lvnar.config.model_type}, not an lvnar; autoregressive models: --teacher.")
    models: dict[str, PreTrainedModel] = {"lvnar": lvnar}
    sources = {"lvnar": model}
    exported = folder / "lvnar-onnx"
    shortlist: Shortlist | None = None
    with suppress(FileNotFoundError):
        shortlist = Shortlist.from_pretrained(model, lvnar.config)
    specs = lvnar_specs(
        model,
        str(exported),
        has_shortlist=shortlist is not None,
        tokenizer_folder=model,
        **arguments.common(),
    )
    loaded = [load_teacher(name) for name in teachers]
    for number, teacher in enumerate(loaded):
        is_listed = shortlist is not None and teacher.tokenizer.get_vocab() == tokenizer.get_vocab()
        common = {"has_shortlist": is_listed, "tokenizer_folder": teacher.name, **arguments.common()}
        specs += marian_specs(teacher.name, folder / str(number), teacher.model, **common)
        models[marian_name(teacher.model)] = teacher.model
        sources[marian_name(teacher.model)] = teacher.name
    specs = select_systems(specs, arguments.systems)
    _export(lvnar, exported, specs, shortlist)
    for number, teacher in enumerate(loaded):
        if any(Path(spec.folder).parent == folder / str(number) for spec in specs):
            if (reason := why_not_ctranslate2(teacher)) is not None:
                raise EngineError(reason)
            _convert(teacher.model, folder / str(number), specs, shortlist)

    encode: Callable[..., Any] = tokenizer
    limit = lvnar.config.max_position_embeddings
    source_lengths = [len(i) for i in encode(test_set.source_texts, truncation=True, max_length=limit)["input_ids"]]
    target_lengths = [len(i) for i in encode(text_target=test_set.target_texts)["input_ids"]]
    described = {
        name: {"num_parameters": model.num_parameters(), "from": sources[name]} for name, model in models.items()
    }
    del lvnar, loaded, models

    order = sorted(range(len(source_lengths)), key=lambda index: source_lengths[index])
    samples = [sample_batches(order, size, arguments.num_timed_sentences or 64) for size in arguments.batch_sizes]
    warm_up = [test_set.source_texts[order[len(order) // 2]]]
    turns: dict[TurnKey, Turn] = {
        (kind, sample.batch_size): Turn(
            [[test_set.source_texts[index] for index in batch] for batch in sample.batches], kind, warm_up
        )
        for sample in samples
        for kind in ("model", "end_to_end")
    }
    with working(specs) as workers:
        played = play_rounds(
            workers, turns, arguments.num_repeats, arguments.max_minutes * 60, lambda *_: None, "trained models"
        )
        systems = describe_systems(workers, played, samples)
        for name, worker in tqdm(workers.items(), desc="quality", unit="system"):
            hypotheses, num_refinements = translate_all(worker, test_set.source_texts, order)
            systems[name]["quality"] = corpus_scores(
                hypotheses, test_set.target_texts, test_set.source_language, test_set.target_language
            )
            if worker.spec.family == "lvnar":
                systems[name]["mean_steps_taken"] = num_refinements / len(order)
    return {
        "what": (
            f"Trained models on {test_set.name}, each with its own translations' lengths. Model only: from token ids "
            "to token ids; end to end: from text to text, with the tokenizer; loading and sorting are in neither."
        ),
        "models": described,
        "test_set": {"name": test_set.name, "num_sentences": len(order), "quality_batch_size": QUALITY_BATCH_SIZE},
        **describe_run(arguments, systems, played, samples, list(zip(source_lengths, target_lengths, strict=True))),
    }


def translate_all(player: Player, texts: Sequence[str], order: Sequence[int]) -> tuple[list[str], int]:
    """Translations of all texts, in their order, and refinement steps summed over them.

    Args:
        player: translates batches of neighbours in `order`.
        texts: source texts.
        order: their indices, sorted by length.
    """
    hypotheses, num_refinements = [""] * len(texts), 0
    for start in range(0, len(order), QUALITY_BATCH_SIZE):
        batch = order[start : start + QUALITY_BATCH_SIZE]
        result = player.play(Turn([[texts[index] for index in batch]]))
        num_refinements += result.num_refinements
        for index, hypothesis in zip(batch, result.outputs[0], strict=True):
            hypotheses[index] = hypothesis
    return hypotheses, num_refinements


def describe_systems(
    workers: Mapping[str, Worker], played: Played, samples: Sequence[Sample]
) -> dict[str, dict[str, Any]]:
    """What the JSON says of each system, by name: its times, what they come to, and its memory."""
    systems: dict[str, dict[str, Any]] = {}
    for name, worker in workers.items():
        spec, times = worker.spec, played.times[name]
        system: dict[str, Any] = {
            "family": spec.family,
            "model": spec.model,
            "engine": spec.engine,
            "compute_type": spec.engine.split()[1] if " " in spec.engine else spec.dtype,
            **played.descriptions[name],
        }
        for kind in sorted({kind for kind, _ in times}, reverse=True):  # "model" first
            summary: dict[str, Any] = {}
            if (kind, 1) in times:
                summary["latency_ms"] = summarise_latency(times[kind, 1])
            summary["sentences_per_second"] = {
                str(sample.batch_size): summarise_throughput(times[kind, sample.batch_size], len(sample.indices))
                for sample in samples
            }
            summary["times_s"] = {str(sample.batch_size): times[kind, sample.batch_size] for sample in samples}
            system[kind] = summary
        system["memory_mib"] = {
            "libraries": worker.process.library_memory_mib,
            "loading": worker.process.loaded_memory_mib,
            "peak": {
                str(sample.batch_size): played.peak_memory_mib[name]["model", sample.batch_size] for sample in samples
            },
        }
        systems[name] = system
    return systems


def count_rounds(played: Played, batch_size: int) -> dict[str, list[int]]:
    """The fewest and the most repeats that a system had, by kind of turn."""
    counts: dict[str, list[int]] = {}
    for times in played.times.values():
        for (kind, size), rounds in times.items():
            if size == batch_size:
                counts.setdefault(kind, []).append(len(rounds))
    return {kind: [min(numbers), max(numbers)] for kind, numbers in counts.items()}


def describe_run(
    arguments: TimingArguments,
    systems: dict[str, dict[str, Any]],
    played: Played,
    samples: Sequence[Sample],
    lengths: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """What the JSON says of a mode as a whole; speed-ups are added to the systems.

    Args:
        systems: of `describe_systems`.
        samples: the sentences of each batch size.
        lengths: source and (reference's) target tokens of every sentence of the test set.
    """
    baseline = next((name for name in systems if name.endswith(BASELINE_SETTING)), None)
    if baseline is not None and "latency_ms" in systems[baseline]["model"]:
        slowest = systems[baseline]["model"]["latency_ms"]["mean"]
        for system in systems.values():
            system["model"]["speed_up"] = slowest / system["model"]["latency_ms"]["mean"]
    throughputs = {
        name: {int(size): row["median"] for size, row in system["model"]["sentences_per_second"].items()}
        for name, system in systems.items()
    }
    return {
        "settings": {
            "device": arguments.device,
            "dtype": arguments.dtype,
            "threads": arguments.num_threads,
            "num_repeats": arguments.num_repeats,
            "max_minutes": arguments.max_minutes,
        },
        "sentences": {
            str(sample.batch_size): {
                "num_sentences": len(sample.indices),
                "num_batches": len(sample.batches),
                "mean_source_tokens": statistics.mean(lengths[index][0] for index in sample.indices),
                "mean_target_tokens": statistics.mean(lengths[index][1] for index in sample.indices),
                "num_rounds": count_rounds(played, sample.batch_size),
            }
            for sample in samples
        },
        "baseline": baseline,
        "systems": systems,
        "crossovers": find_crossovers(throughputs, {name: system["family"] for name, system in systems.items()}),
        "measured_seconds": sum(played.calls),
        "harness_share": harness_share(len(played.calls), sum(played.calls)),
    }
