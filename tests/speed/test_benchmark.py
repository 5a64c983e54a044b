"""The benchmark: forced lengths, fair rounds, statistics, and tables and plots that hold what the JSON holds."""

import copy
import inspect
import json
import statistics
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SAMPLE
from sacrebleu.metrics import BLEU
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lvnar_hf import LvnarConfig
from lvnar_hf.engines.shortlist import FILE, Shortlist
from tests.distillation.test_teacher_engines import make_teacher_model
from training import benchmark
from training.data.evaluation_sets import TestSet
from training.quality.decoding import translate_texts
from training.reports.speed_tables import (
    render_document,
)
from training.sections import ModelArguments
from training.speed import systems as benchmark_systems
from training.speed import timing as benchmark_timing
from training.speed.arguments import TimingArguments
from training.speed.conversions import convert, export
from training.speed.description import count_rounds
from training.speed.forced_lengths import (
    TokenCode,
    make_lvnar,
    make_marian,
    make_random_shortlist,
    read_lengths,
    sample_batches,
    shift_codes,
)
from training.speed.modes import RANDOM_LAYERS, check_lengths, run_trained, translate_all
from training.speed.specs import (
    COMPILED_ENGINE,
    SHORTLIST_ENGINE,
    VOCABULARY_MAP_ENGINE,
    SystemSpec,
    lvnar_specs,
    marian_specs,
    select_systems,
)
from training.speed.timing import (
    find_crossovers,
    interleave,
    measure_rounds,
    overhead_share,
    quantile,
    summarise_latency,
    summarise_throughput,
)
from training.speed.workers import LocalRunner, Measurement, Worker, WorkerProcess, Workload, time_calls

LENGTHS = [(3, 4), (5, 5), (6, 12), (9, 9), (10, 4), (12, 10)]
CODE = TokenCode(vocab_size=500, max_target_length=12, min_offset=-6, max_offset=6)


def small_config(**changes) -> LvnarConfig:
    sizes: dict = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_prior_layers": 1}
    sizes |= {"num_posterior_encoder_layers": 1, "num_posterior_decoder_layers": 1, "num_decoder_layers": 1}
    sizes |= {"latent_dim": 4, "max_length_offset": 20, "max_position_embeddings": 40}
    return LvnarConfig(**{"vocab_size": CODE.vocab_size, **sizes, **changes})


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def random_specs(tmp_path_factory) -> list[SystemSpec]:
    """All systems, their random models saved and converted."""
    folder = tmp_path_factory.mktemp("random")
    lvnar = make_lvnar(small_config(), CODE)
    lvnar.save_pretrained(folder / "lvnar")
    exported = folder / "lvnar-onnx"
    specs = lvnar_specs(str(folder / "lvnar"), str(exported), has_shortlist=True, remove_repetitions=False)
    sources = CODE.make_sources(LENGTHS, torch.Generator().manual_seed(2))
    shortlist = make_random_shortlist(lvnar, CODE, sources, 60, 8, whole_share=0.2)
    export(lvnar, exported, specs, shortlist)
    for encoder_layers, decoder_layers in RANDOM_LAYERS:
        marian = make_marian(small_config(), (encoder_layers, decoder_layers), CODE)
        name = folder / f"{encoder_layers}-{decoder_layers}"
        marian.save_pretrained(name)
        specs += marian_specs(str(name), folder / f"{name}-converted", marian, has_shortlist=True)
        convert(marian, folder / f"{name}-converted", specs, shortlist)
    return specs


def test_every_system_does_the_forced_lengths_and_every_refinement_step(random_specs, threads):
    assert len(random_specs) == 4 * 3 + 2 * 8
    sources = CODE.make_sources(LENGTHS, torch.Generator().manual_seed(1))
    assert [len(source) for source in sources] == [source for source, _ in LENGTHS]
    targets = [target for _, target in LENGTHS]
    for spec in random_specs:
        result = LocalRunner(spec).run(Workload([sources, sources[:1]], warm_up=sources[:2]))
        assert [len(row) for row in result.outputs[0]] == targets, spec.name
        assert [len(row) for row in result.outputs[1]] == targets[:1], spec.name
        steps = spec.setting if spec.family == "lvnar" else 0
        assert result.num_refinements == steps * (len(LENGTHS) + 1)
        if spec.engine == SHORTLIST_ENGINE and spec.setting:
            assert 0 < result.description["whole_vocabulary_share"] < 0.6
            tried = result.description["tokens_tried"]["6"]
            lengths = [length for length, _ in LENGTHS]
            assert 60 < tried["lowest"] <= 60 + 8 * 2 * min(lengths) < tried["highest"] < 60 + 8 * 2 * max(lengths)
            assert tried["mean"] == pytest.approx(60 + 8 * statistics.mean(lengths), rel=0.25)
        assert len(result.seconds) == 2 and min(result.seconds) > 0 and result.peak_memory_mib > 50
        if spec.family == "autoregressive":
            assert all(row[-1] == 1 and 1 not in row[:-1] for row in result.outputs[0])


def test_random_lists_are_as_long_as_those_of_the_model_that_ships(sample_texts):
    """For a sentence, beside the tokens that are always tried; the sample's sentences have 10 tokens or so."""
    folder = ROOT / "model_cards" / "lvnar-tatoeba-en-de"
    tokenizer, config = AutoTokenizer.from_pretrained(folder), LvnarConfig.from_pretrained(folder)
    shortlist = Shortlist.from_pretrained(folder, config)
    num_tokens = num_tried = 0
    for ids in tokenizer(sample_texts[0])["input_ids"]:
        tried = shortlist.candidates_of(torch.tensor([ids]), torch.ones(1, len(ids)), config)
        num_tokens, num_tried = num_tokens + len(ids), num_tried + tried.shape[1] - len(shortlist.frequent)
    num_per_token = inspect.signature(make_random_shortlist).parameters["num_per_token"].default
    assert num_per_token == pytest.approx(num_tried / num_tokens, rel=0.05)


def test_a_vocabulary_map_has_the_shortlist_and_no_padding(random_specs):
    """CTranslate2 has nothing but the map's tokens: of the source's lists, and those that are always tried."""
    spec = next(spec for spec in random_specs if spec.engine == VOCABULARY_MAP_ENGINE)
    lines = (Path(spec.folder) / "vmap.txt").read_text().split("\n")
    by_source = {source: set(map(int, tokens.split())) for source, tokens in (line.split("\t") for line in lines[:-1])}
    shortlist = Shortlist.load(Path(random_specs[0].folder).parent / "lvnar-onnx" / FILE, small_config())
    assert len(by_source) == 1 + CODE.vocab_size
    assert by_source[""] == {1, *shortlist.frequent.tolist()}
    source = max(range(3, 500), key=lambda token: len(by_source[str(token)]))
    assert by_source[str(source)] == set(shortlist.candidates[source].tolist()) - {0}
    (row,) = benchmark_systems.build_system(spec).translate([[source] * 5])
    assert set(row) <= by_source[""] | by_source[str(source)]


def test_a_system_that_does_other_lengths_stops_the_benchmark(random_specs):
    own, other = random_specs[1], random_specs[-1]
    check_lengths(own, [4, 5], [4, 5], num_refinements=2)
    check_lengths(other, [4, 5], [4, 5], num_refinements=0)
    with pytest.raises(RuntimeError, match="lvnar, eager, 1 step: 6 tokens instead of 5 for sentence 1"):
        check_lengths(own, [4, 6], [4, 5], num_refinements=2)
    with pytest.raises(RuntimeError, match="1 step: 1 refinement steps instead of 2"):
        check_lengths(own, [4, 5], [4, 5], num_refinements=1)


def test_ctranslate2_gets_the_faster_of_two_ways(random_specs, threads, monkeypatch):
    spec = copy.copy(next(spec for spec in random_specs if spec.engine == "ctranslate2 int8"))
    object.__setattr__(spec, "num_threads", 2)
    system = benchmark_systems.build_system(spec)
    now = [0.0]
    cost = {(1, 2): 2.0, (2, 1): 1.0, (1, 1): 3.0}  # by number of workers and threads of each
    translate = type(system).translate

    def slow(self, batch):
        now[0] += cost[self.way]
        return translate(self, batch)

    monkeypatch.setattr(type(system), "translate", slow)
    monkeypatch.setattr(benchmark_systems.time, "perf_counter", lambda: now[0])
    sources = CODE.make_sources(LENGTHS[:4], torch.Generator())
    system.prepare([sources[:1], sources[1:2]])
    assert system.way == (1, 2)
    system.prepare([sources])
    assert system.way == (2, 1)
    cost[2, 1] = 3.0
    system.prepare([sources[:3]])
    assert system.way == (1, 2)
    system.prepare([sources])
    assert system.way == (2, 1), "it was found before"
    assert system.description == {"inter_and_intra_threads": {"1": [1, 2], "4": [2, 1], "3": [1, 2]}}
    other = benchmark_systems.build_system(spec)
    cost[1, 1] = 1.5
    other.prepare([sources[:1]])
    assert other.way == (1, 1)
    assert [len(row) for row in system.translate(sources)] == [target for _, target in LENGTHS[:4]]


def test_with_ctc_alignment_each_step_changes_all_and_lengths_are_near_the_sources():
    model = make_lvnar(small_config(alignment="ctc", carries_source_states=True), CODE)
    sources = CODE.make_sources(LENGTHS, torch.Generator().manual_seed(1), with_offsets=False)
    input_ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(source) for source in sources], batch_first=True)
    output = model.generate(input_ids, num_refinement_steps=3, return_dict_in_generate=True)
    assert output.num_steps_taken.tolist() == [3] * len(sources)
    for step in output.sequences_per_step:  # a token beside an equal one is one with it
        assert 0.4 < (step != 0).sum() / sum(map(len, sources)) < 1.2
    signs = [CODE.signs()[step[step > 2] - 3].unique().tolist() for step in output.sequences_per_step]
    assert signs == [[1], [-1], [1], [-1]]


def test_a_code_that_does_not_fit_is_refused():
    codes = shift_codes(64, torch.Generator().manual_seed(0))
    torch.testing.assert_close(codes @ codes.T, torch.eye(64), atol=0.02, rtol=0)
    torch.testing.assert_close(codes[5], codes[4].roll(1))
    with pytest.raises(ValueError, match="vocabulary of 300 ids is too small for targets of up to 12 tokens"):
        TokenCode(300, 12, -6, 6)
    with pytest.raises(ValueError, match="14 codes are needed, but there are 8"):
        make_lvnar(small_config(hidden_size=8), CODE)
    with pytest.raises(ValueError, match="intermediate_size is 64; the code takes at least 128"):
        make_marian(small_config(intermediate_size=64), (1, 1), CODE)


def test_the_lengths_of_newstest2014_are_all_there():
    lengths = read_lengths()
    assert len(lengths) == 3003 and min(map(min, lengths)) >= 2
    assert 25 < statistics.mean(source for source, _ in lengths) < 35
    assert sum(abs(target - source) > LvnarConfig().max_length_offset for source, target in lengths) == 1


def test_batches_are_neighbours_evenly_spaced():
    assert sample_batches(range(100), 1, 4).batches == [[12], [37], [62], [87]]
    sample = sample_batches(range(100), 8, 23)
    assert sample.batches == [list(range(21, 29)), list(range(71, 79))]
    assert sample.indices == [*range(21, 29), *range(71, 79)]
    assert sample_batches(range(10), 10, 1).batches == [list(range(10))]
    with pytest.raises(ValueError, match="10 sentences do not fill a batch of 11"):
        sample_batches(range(10), 11, 1)


# timing


def test_statistics_of_known_times():
    rounds = [[0.010, 0.020, 0.060], [0.030, 0.020, 0.070], [0.020, 0.050, 0.080]]  # medians 20, 20, 70 ms
    latency = summarise_latency(rounds)
    assert latency == pytest.approx(
        {"mean": 110 / 3, "std": 28.8675, "p50": 20, "p95": 65, "lowest_mean": 30, "highest_mean": 50}, abs=1e-3
    )
    assert summarise_latency([[0.5], [0.7]])["std"] == 0.0
    speed = summarise_throughput([[1.0, 1.0], [4.0, 1.0], [2.0, 2.0]], num_sentences=20)
    assert speed == {"median": 5.0, "lowest": 4.0, "highest": 10.0}
    assert quantile([1.0, 2.0, 3.0, 4.0, 5.0], 0.25) == 2.0


def test_crossovers_of_known_speeds():
    speeds = {
        "0 steps": {1: 50.0, 8: 60.0, 32: 60.0},
        "1 step": {1: 20.0, 8: 30.0, 32: 31.0},
        "greedy": {1: 10.0, 8: 30.0, 32: 80.0},
        "slow": {1: 1.0, 8: 8.0, 32: 16.0},
        "fast": {1: 60.0, 8: 10.0, 32: 90.0},
    }
    families = {name: "lvnar" if "step" in name else "autoregressive" for name in speeds}
    assert find_crossovers(speeds, families) == {
        "0 steps": {"greedy": 32, "slow": None, "fast": 1},
        "1 step": {"greedy": 8, "slow": None, "fast": 1},
    }


def test_the_order_moves_on_from_round_to_round():
    assert list(interleave(["a", "b", "c"], 4)) == [
        (0, ["a", "b", "c"]),
        (1, ["b", "c", "a"]),
        (2, ["c", "a", "b"]),
        (3, ["a", "b", "c"]),
    ]


class FakeRunner:
    """Takes workloads and notes them; the clock goes on by `seconds` in each."""

    def __init__(self, name, notes, clock, seconds=1.0):
        self.spec = SystemSpec(name, "lvnar", "lvnar", "eager", "", 0, 0)
        self.notes, self.clock, self.seconds = notes, clock, seconds

    def run(self, workload):
        self.notes.append((self.spec.name, len(workload.batches[0])))
        self.clock[0] += self.seconds
        outputs = [[text.upper() for text in batch] for batch in workload.batches]
        return Measurement([self.seconds] * len(workload.batches), outputs, 2, 100.0 + len(self.notes))


@pytest.mark.parametrize(("max_seconds", "last_round"), [(100, [1, 8]), (12.5, [1, 8]), (11, [1]), (0, [])])
def test_systems_take_turns_until_time_is_up(monkeypatch, max_seconds, last_round):
    notes, clock, checked = [], [0.0], []
    monkeypatch.setattr(benchmark_timing.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(benchmark_timing.time, "sleep", lambda seconds: None)
    runners = {name: FakeRunner(name, notes, clock) for name in ("a", "b")}
    workloads = {("model", 1): Workload([["x"], ["y"]]), ("model", 8): Workload([["x"] * 8])}
    measured = measure_rounds(
        runners, workloads, 3, max_seconds, lambda runner, key, result: checked.append((runner.spec.name, key[1])), ""
    )
    order = [(name, size) for size in (1, 8) for name in "ab"] + [(name, size) for size in (1, 8) for name in "ba"]
    assert notes == order + [(name, size) for size in last_round for name in "ab"] == checked
    assert measured.times["b"]["model", 8] == [[1.0]] * (2 + (8 in last_round))
    assert measured.times["b"]["model", 1] == [[1.0, 1.0]] * (2 + (1 in last_round))
    assert measured.peak_memory_mib["a"] == {("model", 1): 101.0, ("model", 8): 103.0}, "of the first round"
    assert len(measured.calls) == sum(2 if size == 1 else 1 for _, size in notes)


def test_quick_workloads_are_measured_more_often(monkeypatch):
    notes, clock = [], [0.0]
    monkeypatch.setattr(benchmark_timing.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(benchmark_timing.time, "sleep", lambda seconds: None)
    runners = {"quick": FakeRunner("quick", notes, clock, 0.4), "slow": FakeRunner("slow", notes, clock, 0.5)}
    workloads = {("model", size): Workload([["x"] * size] * 2) for size in (1, 8, 32, 128)}
    measured = measure_rounds(runners, workloads, 2, 100, lambda *_: None, "")
    assert notes[:9] == [
        *(("quick", 1), ("slow", 1), ("quick", 8), ("slow", 8), ("quick", 1)),
        *(("quick", 32), ("slow", 32), ("quick", 1), ("quick", 128)),
    ]
    assert count_rounds(measured, 1) == {"model": [2, 6]} and count_rounds(measured, 8) == {"model": [2, 2]}


def test_the_device_is_waited_for_before_each_timestamp(monkeypatch):
    events = []
    monkeypatch.setattr("training.speed.workers.time.perf_counter", lambda: events.append("time") or len(events))
    seconds, outputs = time_calls(
        lambda batch: events.append(batch) or batch * 2, ["x", "y"], lambda: events.append("wait")
    )
    assert events == ["wait", "time", "x", "wait", "time", "wait", "time", "y", "wait", "time"]
    assert seconds == [3, 3] and outputs == ["xx", "yy"]


def test_the_share_of_the_overhead_is_of_what_was_measured():
    assert 0 < overhead_share(1000, 1.0) < 0.01
    assert overhead_share(1000, 1e-6) > 1


def test_all_texts_are_translated_in_their_order():
    runner = FakeRunner("a", [], [0.0])
    texts = [f"text {number}" for number in range(70)]
    hypotheses, num_refinements = translate_all(
        runner, texts, list(reversed(range(70)))
    )  # the last text is the shortest
    assert hypotheses == [text.upper() for text in texts]
    assert num_refinements == 3 * 2 and [size for _, size in runner.notes] == [32, 32, 6]


def test_what_fails_in_a_process_is_said_with_the_system(random_specs, tmp_path):
    process = WorkerProcess([SystemSpec("lost", "lvnar", "lvnar", "eager", str(tmp_path / "none"), 0, 0)])
    try:
        with pytest.raises(RuntimeError, match=r"(?s)lost: Traceback.*none"):
            process.wait()
    finally:
        process.close()
    process = WorkerProcess(random_specs[:2])
    try:
        process.wait()
        assert 50 < process.library_memory_mib <= process.loaded_memory_mib
        assert [Worker(spec, process).run(Workload([[[3, 1]]])).num_refinements for spec in random_specs[:2]] == [0, 1]
        process._process.kill()
        with pytest.raises(RuntimeError, match=r"1 step: its process ended with code -9"):
            Worker(random_specs[1], process).run(Workload([[[3, 1]]]))
    finally:
        process.close()


def test_systems_that_are_compiled_are_of_cuda_and_share_a_process():
    specs = lvnar_specs("model", "exported", "cuda")
    assert {spec.engine for spec in specs} == {"eager", COMPILED_ENGINE}
    assert len({spec.process for spec in specs}) == len(specs) - 2
    assert {spec.setting for spec in specs if spec.process == COMPILED_ENGINE} == {0, 1, 3}


# the whole command


def write_lines(path, lines) -> str:
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def small_teacher(tmp_path_factory, sample_tokenizer):
    folder = tmp_path_factory.mktemp("teacher")
    make_teacher_model(len(sample_tokenizer)).save_pretrained(folder)
    sample_tokenizer.save_pretrained(folder)
    return folder


def test_a_search_in_onnx_stands_beside_its_rescorer(tmp_path, tiny_ctc_repository, small_teacher, threads):
    """Both are exported for it; what it gives is what its graphs give."""
    texts = [(SAMPLE / f"test.{side}").read_text("utf-8").split("\n")[:6] for side in ("en", "de")]
    arguments = TimingArguments(
        ["0 steps, beam 4, rescored", "transformers, beam 1"], [2], num_repeats=2, num_timed_sentences=4, num_threads=1
    )
    test_set = TestSet("a test set", *texts, list(range(1, 7)), "en", "de")
    result = run_trained(arguments, str(tiny_ctc_repository), [str(small_teacher)], test_set, tmp_path)
    name = "lvnar, onnx int8, 0 steps, beam 4, rescored"
    assert list(result["systems"]) == [name, "marian 2-2, transformers, beam 1"]
    assert result["systems"][name]["quality"]["bleu"]["score"] >= 0
    names = {path.name for path in (tmp_path / "lvnar-onnx").glob("**/*.onnx")}
    assert names >= {"model_int8.onnx", "cells_int8.onnx", "rescorer_int8.onnx"}


def test_one_command_runs_both_modes(monkeypatch, capsys, tmp_path, tiny_repository, small_teacher, threads):
    monkeypatch.setattr("lvnar_hf.LvnarConfig", small_config)
    monkeypatch.setattr("training.speed.forced_lengths.read_lengths", lambda: [*LENGTHS, (1, 30)])
    sources, references = ((SAMPLE / f"test.{side}").read_text("utf-8").split("\n")[:12] for side in ("en", "de"))
    folder = tmp_path / "out"
    argv = ["--output_folder", str(folder), "--batch_sizes", "4", "1", "--num_timed_sentences", "2"]
    argv += ["--num_repeats", "2", "--num_threads", "1", "--device", "cpu"]
    sizes = {name: value for name, value in small_config().to_dict().items() if name in ModelArguments.__annotations__}
    argv += [f"--{name}={value}" for name, value in sizes.items() if type(value) is int]
    argv += [
        "--systems",
        "eager, 3 steps",
        "6-6, transformers, beam 3",
        "12-1, ctranslate2 int8, beam 1",
        "2-2, transformers, beam 1",
        "16 latents, rescored",
    ]
    argv += ["--model", str(tiny_repository), "--teacher", str(small_teacher)]
    argv += ["--source_file", write_lines(tmp_path / "en", sources)]
    argv += ["--target_file", write_lines(tmp_path / "de", references)]
    result = benchmark.main(argv)
    last_line = json.loads(capsys.readouterr().out.strip().split("\n")[-1])
    assert result == json.loads((folder / "benchmark.json").read_text())
    assert (folder / "benchmark.md").read_text("utf-8") == render_document(result)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("benchmark.json", "benchmark.md", "throughput.random.png", "throughput.trained.png", "quality.trained.png")
    }

    by_random, by_trained = result["modes"]["random"], result["modes"]["trained"]
    assert list(by_random["systems"]) == [
        *("lvnar, eager, 3 steps", "marian 6-6, transformers, beam 3", "marian 12-1, ctranslate2 int8, beam 1")
    ]
    assert list(by_trained["systems"]) == [
        *("lvnar, eager, 3 steps", "lvnar, eager, 1 step, 16 latents, rescored", "marian 2-2, transformers, beam 1")
    ]
    assert by_random["num_left_out"] == 1 and by_random["baseline"] == "marian 6-6, transformers, beam 3"
    assert by_random["systems"][by_random["baseline"]]["model"]["speed_up"] == 1.0
    for mode in (by_random, by_trained):
        assert list(mode["sentences"]) == ["1", "4"] and mode["overhead_share"] < 0.01
        assert mode["sentences"]["4"]["num_sentences"] == 4 and mode["sentences"]["1"]["num_sentences"] == 2
        for system in mode["systems"].values():
            # Quick ones are taken again after each other workload, up to three times a round.
            num_turns = 2 * min(3, 1 + len(mode["sentences"]["1"]["num_rounds"]))
            assert [len(seconds) for seconds in system["model"]["times_s"]["1"]] == [2] * num_turns
            expected = summarise_latency(system["model"]["times_s"]["1"])
            assert system["model"]["latency_ms"] == expected and set(system["memory_mib"]["peak"]) == {"1", "4"}
    assert last_line["random"].keys() == by_random["systems"].keys()

    tokenizer = AutoTokenizer.from_pretrained(tiny_repository)
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_repository).eval()
    teacher = AutoModelForSeq2SeqLM.from_pretrained(small_teacher).eval()
    for system, options in (
        ("lvnar, eager, 3 steps", {"num_refinement_steps": 3}),
        (
            "lvnar, eager, 1 step, 16 latents, rescored",
            {"num_latent_candidates": 16, "latent_noise_scale": 1.0, "rescorer": teacher},
        ),
        ("marian 2-2, transformers, beam 1", {"num_beams": 1, "max_new_tokens": 40, "max_length": None}),
    ):
        translator = model if "lvnar" in system else teacher
        hypotheses = translate_texts(translator, tokenizer, sources, **options)
        bleu = by_trained["systems"][system]["quality"]["bleu"]
        assert bleu["score"] == pytest.approx(BLEU().corpus_score(hypotheses, [references]).score)
        assert bleu["signature"].startswith("nrefs:1|case:mixed")
    assert 1 < by_trained["systems"]["lvnar, eager, 3 steps"]["mean_steps_taken"] <= 3
    assert "mean_steps_taken" not in by_trained["systems"]["lvnar, eager, 1 step, 16 latents, rescored"]
    assert all("end_to_end" in system for system in by_trained["systems"].values())

    with pytest.raises(FileExistsError, match="--output_folder, or give --overwrite"):
        benchmark.main(argv)
    write_lines(tmp_path / "de", references[1:])
    with pytest.raises(ValueError, match=r"12.*11"):
        benchmark.main([*argv, "--overwrite"])


def test_what_cannot_be_run_is_refused_with_what_to_do(monkeypatch, tmp_path, random_specs):
    assert [spec.name for spec in select_systems(random_specs, ["0 steps", "12-1, ctranslate2 int8, beam 3"])] == [
        *("lvnar, eager, 0 steps", "lvnar, onnx float32, 0 steps"),
        *("lvnar, onnx int8, 0 steps", "lvnar, onnx int8 shortlist, 0 steps"),
        "marian 12-1, ctranslate2 int8, beam 3",
    ]
    with pytest.raises(ValueError, match="No system has 'openvino' in its name; there are: lvnar, eager, 0 steps; "):
        select_systems(random_specs, ["openvino"])
    with pytest.raises(ValueError, match="Two systems have the name lvnar, eager, 0 steps"):
        select_systems([*random_specs, random_specs[0]], [])
    folder = ["--output_folder", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="The mode trained and --model belong together"):
        benchmark.main([*folder, "--modes", "trained"])
    with pytest.raises(ValueError, match="modes holds fast; there are random, trained"):
        benchmark.main([*folder, "--modes", "fast"])
    with pytest.raises(ValueError, match="Named are no sentences; name one of: --source_file"):
        benchmark.main([*folder, "--model", "x"])
    with pytest.raises(ValueError, match="num_repeats is 1; a spread needs at least 2"):
        TimingArguments(num_repeats=1)
    with pytest.raises(ValueError, match=r"batch_sizes are \[0, 1\]"):
        TimingArguments(batch_sizes=[0, 1])
    with pytest.raises(ValueError, match="dtype is 'int8'; it must be one of float32, bfloat16, float16"):
        TimingArguments(dtype="int8")

    found = benchmark.importlib.util.find_spec
    monkeypatch.setattr(
        benchmark.importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("ctranslate2", "matplotlib") else found(name, *rest),
    )
    with pytest.raises(ImportError, match=r"pip install 'lvnar-hf\[distil\]'. To go without it: --systems lvnar"):
        select_systems(random_specs, [])
    assert len(select_systems(random_specs, ["lvnar", "transformers"])) == 12 + 4
    without = ("ctranslate2", "matplotlib", "onnxscript")
    monkeypatch.setattr(
        benchmark.importlib.util, "find_spec", lambda name, *rest: None if name in without else found(name, *rest)
    )
    with pytest.raises(
        ImportError, match=r"onnxscript is not installed: pip install 'lvnar-hf\[export\]'.*--systems eager"
    ):
        select_systems(random_specs, ["lvnar"])
    assert len(select_systems(random_specs, ["eager", "transformers"])) == 3 + 4
    with pytest.raises(ImportError, match=r"pip install 'lvnar-hf\[eval\]'"):
        benchmark.main(folder)
