"""The two benchmarks: random weights at the paper's sizes, and trained models on real sentences.

With random weights the sentences are lengths alone, those of newstest2014, and every system is checked to have done
exactly these, and every refinement step asked for. With trained models the lengths are each system's own, and quality
stands beside speed.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from lvnar_hf import LvnarConfig
from lvnar_hf.decoding import decode_batches, sorted_batches
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.loading import load_model, load_tokenizer
from training.data.evaluation_sets import TestSet, evenly_spaced
from training.distillation.ctranslate2_model import EngineError, why_not_ctranslate2
from training.distillation.teacher import load_teacher
from training.speed.arguments import TimingArguments
from training.speed.conversions import convert, export
from training.speed.description import describe_run, describe_systems
from training.speed.forced_lengths import TokenCode, make_lvnar, make_marian, make_random_shortlist, sample_batches
from training.speed.specs import (
    SHORTLIST_ENGINE,
    VOCABULARY_MAP_ENGINE,
    SystemSpec,
    lvnar_specs,
    marian_name,
    marian_specs,
    search_specs,
    select_systems,
)
from training.speed.timing import WorkloadKey, measure_rounds
from training.speed.workers import Measurement, Runner, Worker, WorkerProcess, Workload
from training.translation_quality.bleu import corpus_scores

RANDOM_LAYERS = ((6, 6), (12, 1))  # of encoder and decoder
QUALITY_BATCH_SIZE = 32
CALIBRATION_SENTENCES = 32  # at most, on which the confidence of a random shortlist is set


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
    order = [
        index for index, (source, target) in enumerate(lengths) if abs(target - source) <= config.max_length_offset
    ]
    order.sort(key=lambda index: lengths[index])
    samples = [sample_batches(order, size, arguments.num_timed_sentences or 10) for size in arguments.batch_sizes]
    timed = {index: lengths[index] for index in sorted({index for sample in samples for index in sample.indices})}
    specs, models, sources = _prepare_random(arguments, config, timed, folder, seed)

    warm_up = [sources[min(timed, key=lambda index: lengths[index])]]
    workloads: dict[WorkloadKey, Workload] = {
        ("model", sample.batch_size): Workload(
            [[sources[index] for index in batch] for batch in sample.batches], warm_up=warm_up
        )
        for sample in samples
    }
    expected = {sample.batch_size: [lengths[index][1] for index in sample.indices] for sample in samples}
    of_cells: dict[str, dict[int, float]] = {}  # with alignment "ctc": tokens a sentence, as they came

    def check(runner: Runner, key: WorkloadKey, result: Measurement) -> None:
        done = [len(row) for batch in result.outputs for row in batch]
        wanted = expected[key[1]]
        if runner.spec.family == "lvnar" and config.alignment == "ctc":
            of_cells.setdefault(runner.spec.name, {})[key[1]] = statistics.mean(done)
            wanted = done
        check_lengths(runner.spec, done, wanted, result.num_refinements)

    with working(specs) as workers:
        measured = measure_rounds(
            workers, workloads, arguments.num_repeats, arguments.max_minutes * 60, check, "random weights"
        )
        systems = describe_systems(workers, measured, samples)
    for name, means in of_cells.items():
        systems[name]["mean_target_tokens"] = {str(size): mean for size, mean in means.items()}
    every, but = ("every system", "")
    if of_cells:
        most = max(mean for means in of_cells.values() for mean in means.values())
        every = "every autoregressive system"
        but = f" This model's have what its cells spell, up to {most:.1f} tokens on the mean of a batch size."
    return {
        "what": (
            f"Random weights, {_sizes(config)}; from token ids to token ids, without tokenizer and loading. Lengths "
            f"are those of newstest2014, English to German: {every} translates each sentence into exactly as many "
            f"tokens as its reference has, and every refinement step is taken.{but} The weights are random but for a "
            "code that makes them do so; the products are those of any weights."
        ),
        "models": models,
        "num_left_out": len(lengths) - len(order),
        **describe_run(arguments, systems, measured, samples, lengths),
    }


def _sizes(config: LvnarConfig) -> str:
    """The layers of this model, for a caption."""
    posterior = f"{config.num_posterior_encoder_layers} + {config.num_posterior_decoder_layers}"
    cells = f", {config.upsampling_ratio:g} cells a source token" if config.alignment == "ctc" else ""
    return (
        f"hidden size {config.hidden_size}, prior {config.num_prior_layers} layers, posterior {posterior}, decoder "
        f"{config.num_decoder_layers}, alignment {config.alignment}{cells}"
    )


def _prepare_random(
    arguments: TimingArguments, config: LvnarConfig, timed: dict[int, tuple[int, int]], folder: Path, seed: int
) -> tuple[list[SystemSpec], dict[str, dict[str, Any]], dict[int, list[int]]]:
    """Make the models and write them in each engine's format.

    Args:
        timed: lengths of the sentences that are timed, by index.

    Returns:
        The systems; what the JSON says of each model; source ids of each timed sentence.
    """
    offsets = [target - source for source, target in timed.values()]
    code = TokenCode(config.vocab_size, max(target for _, target in timed.values()), min(offsets), max(offsets))
    lvnar = make_lvnar(config, code, seed)
    marians = {marian_name(marian): marian for marian in (make_marian(config, n, code, seed) for n in RANDOM_LAYERS)}
    folders = {name: folder / name.replace(" ", "-") for name in marians}
    converted = {name: place.with_name(f"{place.name}-converted") for name, place in folders.items()}
    own, exported = folder / "lvnar", folder / "lvnar-onnx"
    common: dict[str, Any] = {"has_shortlist": True, **arguments.common()}
    specs = lvnar_specs(str(own), str(exported), remove_repetitions=False, **common)
    for name, marian in marians.items():
        specs += marian_specs(str(folders[name]), converted[name], marian, **common)
    specs = select_systems(specs, arguments.systems)

    generator = torch.Generator().manual_seed(seed)
    has_lengths = config.alignment == "length"
    sources = dict(zip(timed, code.make_sources(list(timed.values()), generator, has_lengths), strict=True))
    shortlist: Shortlist | None = None
    if any(spec.engine in (SHORTLIST_ENGINE, VOCABULARY_MAP_ENGINE) for spec in specs):
        chosen = evenly_spaced(len(timed), CALIBRATION_SENTENCES)
        shortlist = make_random_shortlist(lvnar, code, [list(sources.values())[i] for i in chosen])
    lvnar.save_pretrained(own)
    export(lvnar, exported, specs, shortlist)
    for name, marian in marians.items():
        marian.save_pretrained(folders[name])
        convert(marian, converted[name], specs, shortlist)
    models = {name: {"num_parameters": model.num_parameters()} for name, model in {"lvnar": lvnar, **marians}.items()}
    return specs, models, sources


def check_lengths(spec: SystemSpec, lengths: Sequence[int], expected: Sequence[int], num_refinements: int) -> None:
    """Raise RuntimeError unless a system gave exactly the expected numbers of tokens and took every refinement step."""
    for index, (given, wanted) in enumerate(zip(lengths, expected, strict=True)):
        if given != wanted:
            raise RuntimeError(f"{spec.name}: {given} tokens instead of {wanted} for sentence {index} of its workload.")
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
    specs, models, lengths = _prepare_trained(arguments, model, teachers, test_set, folder)
    texts, source_lengths = test_set.source_texts, [source for source, _ in lengths]
    order = sorted(range(len(texts)), key=source_lengths.__getitem__)
    samples = [sample_batches(order, size, arguments.num_timed_sentences or 64) for size in arguments.batch_sizes]
    warm_up = [texts[order[len(order) // 2]]]
    workloads: dict[WorkloadKey, Workload] = {
        (kind, sample.batch_size): Workload([[texts[i] for i in batch] for batch in sample.batches], kind, warm_up)
        for sample in samples
        for kind in ("model", "end_to_end")
    }
    with working(specs) as workers:
        measured = measure_rounds(
            workers, workloads, arguments.num_repeats, arguments.max_minutes * 60, lambda *_: None, "trained models"
        )
        systems = describe_systems(workers, measured, samples)
        for name, worker in tqdm(workers.items(), desc="quality", unit="system"):
            hypotheses, num_refinements = translate_all(worker, texts, source_lengths)
            systems[name]["quality"] = corpus_scores(
                hypotheses, test_set.target_texts, test_set.source_language, test_set.target_language
            )
            if worker.spec.family == "lvnar" and not worker.spec.search:
                systems[name]["mean_steps_taken"] = num_refinements / len(texts)
    return {
        "what": (
            f"Trained models on {test_set.name}, each with its own translations' lengths. Model only: from token ids "
            "to token ids; end to end: from text to text, with the tokenizer; loading and sorting are in neither."
        ),
        "models": models,
        "test_set": {"name": test_set.name, "num_sentences": len(texts), "quality_batch_size": QUALITY_BATCH_SIZE},
        **describe_run(arguments, systems, measured, samples, lengths),
    }


def _prepare_trained(
    arguments: TimingArguments, model: str, teachers: Sequence[str], test_set: TestSet, folder: Path
) -> tuple[list[SystemSpec], dict[str, dict[str, Any]], list[tuple[int, int]]]:
    """Load the models and write what the engines need beside them.

    Returns:
        The systems; what the JSON says of each model; source and target tokens of each sentence.
    """
    tokenizer: Any = load_tokenizer(model)
    lvnar: PreTrainedModel = load_model(model)
    if lvnar.config.model_type != "lvnar":
        raise ValueError(f"{model} is a {lvnar.config.model_type}, not an lvnar; autoregressive models: --teacher.")
    shortlist: Shortlist | None = None
    with suppress(FileNotFoundError):
        shortlist = Shortlist.from_pretrained(model, lvnar.config)
    exported, common = folder / "lvnar-onnx", arguments.common()
    specs = lvnar_specs(model, str(exported), has_shortlist=shortlist is not None, tokenizer_folder=model, **common)
    models = {"lvnar": {"num_parameters": lvnar.num_parameters(), "from": model}}
    loaded = [(load_teacher(name), folder / str(number)) for number, name in enumerate(teachers)]
    same = (teacher for teacher, _ in loaded if teacher.tokenizer.get_vocab() == tokenizer.get_vocab())
    rescorer, is_ctc = next(same, None), lvnar.config.alignment == "ctc"
    name = None if rescorer is None else rescorer.name
    specs += search_specs(model, name, is_ctc, exported, tokenizer_folder=model, **common)
    for teacher, converted in loaded:
        is_listed = shortlist is not None and teacher.tokenizer.get_vocab() == tokenizer.get_vocab()
        specs += marian_specs(
            teacher.name, converted, teacher.model, has_shortlist=is_listed, tokenizer_folder=teacher.name, **common
        )
        models[marian_name(teacher.model)] = {"num_parameters": teacher.model.num_parameters(), "from": teacher.name}
    specs = select_systems(specs, arguments.systems)
    export(lvnar, exported, specs, shortlist, None if rescorer is None else rescorer.model)
    for teacher, converted in loaded:
        if any(Path(spec.folder).parent == converted for spec in specs):
            if (reason := why_not_ctranslate2(teacher)) is not None:
                raise EngineError(reason)
            convert(teacher.model, converted, specs, shortlist)

    limit = lvnar.config.max_position_embeddings
    sources = tokenizer(test_set.source_texts, truncation=True, max_length=limit)["input_ids"]
    targets = tokenizer(text_target=test_set.target_texts)["input_ids"]
    return specs, models, [(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]


def translate_all(runner: Runner, texts: Sequence[str], lengths: Sequence[int]) -> tuple[list[str], int]:
    """Translations of all texts, in their order, and refinement steps summed over them.

    Args:
        runner: translates batches of texts alike in length.
        texts: source texts.
        lengths: their tokens.
    """
    num_refinements = 0

    def translate(rows: list[int]) -> list[str]:
        nonlocal num_refinements
        result = runner.run(Workload([[texts[row] for row in rows]]))
        num_refinements += result.num_refinements
        return result.outputs[0]

    hypotheses = decode_batches(translate, sorted_batches(lengths, QUALITY_BATCH_SIZE))
    return list(hypotheses.values()), num_refinements
