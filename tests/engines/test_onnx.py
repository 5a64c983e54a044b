"""The ONNX graphs and their engine: tokens, steps, options and errors as those of PyTorch."""

import errno
import shutil
import sys
from pathlib import Path
from unittest.mock import MagicMock

import onnx
import pytest
import torch
from conftest import collapsed, make_batch, make_ctc_model, tokens_of
from reference_lvnar import ReferenceLvnar
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from lvnar_hf.commands.export import export
from lvnar_hf.ctc_lvnar import ctc_cell_mask
from lvnar_hf.engines import onnx_export
from lvnar_hf.engines.graph import FILES
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.onnx_graph import with_subgraphs
from lvnar_hf.engines.sessions import VERSION_KEY
from training.quality.decoding import translate_texts
from training.translation_quality.bleu import corpus_scores

LENGTHS = [(1 + (7 * row) % 39, 1) for row in range(40)]


@pytest.fixture(scope="module")
def repository(shipped_with_graphs):
    return shipped_with_graphs


@pytest.fixture(scope="module")
def ctc_repository(tmp_path_factory):
    """The other alignment, its penalty felt; and a vocabulary without divisors, larger than the parts of the argmax."""
    folder = tmp_path_factory.mktemp("onnx") / "ctc"
    make_ctc_model(seed=1, vocab_size=257, blank_penalty=20.0).save_pretrained(folder)
    assert export(str(folder))["float32"]["different_sentences"] == 0
    return folder


@pytest.fixture(scope="module", params=["repository", "ctc_repository"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def engine(folder):
    return LvnarOnnxModel.from_pretrained(folder)


def test_an_export_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    """The disk is full at the second graph: the first, which was whole, does not get its name either."""
    make_ctc_model().save_pretrained(tmp_path)
    (tmp_path / "onnx").mkdir()
    for file in FILES.values():
        (tmp_path / file).write_text("old")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "graph", [value], [])
    written = []

    def quantize_on_full_disk(_, file, **__):
        written.extend((tmp_path / "onnx").iterdir())
        Path(file).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lvnar_hf.jobs.export.source_pieces", lambda _: MagicMock())
    monkeypatch.setattr(onnx_export, "_export_translation", lambda _: None)
    monkeypatch.setattr(onnx_export, "assemble", lambda *_: onnx.helper.make_model(graph))
    monkeypatch.setattr(onnx.checker, "check_model", lambda _: None)
    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", quantize_on_full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        export(str(tmp_path), overwrite=True)
    assert len(written) == 3, "the first graph, under no name of its own yet"
    left = {path.name: path.read_text() for path in (tmp_path / "onnx").iterdir()}
    assert left == {"model.onnx": "old", "model_int8.onnx": "old"}


of_the_model_that_ships = pytest.mark.parametrize("folder", ["repository"], indirect=True)
of_ctc = pytest.mark.parametrize("folder", ["ctc_repository"], indirect=True)


@pytest.mark.parametrize(
    ("num_steps", "options"),
    [(0, {}), (1, {"max_length": 5}), (3, {"remove_repetitions": False}), (8, {}), (0, {"max_length": 5})],
)
def test_float32_is_pytorch_token_by_token(model, engine, num_steps, options):
    """Every length there is, in one batch; the steps that each sentence takes too."""
    for seed in range(3 if model.config.vocab_size < 1000 else 1):
        batch = make_batch(model.config, LENGTHS, seed)
        options = {**options, "num_refinement_steps": num_steps, "return_dict_in_generate": True}
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], **options}
        expected, output = model.generate(**inputs), engine.generate(**inputs)
        assert torch.equal(output.sequences, expected.sequences)
        assert torch.equal(output.num_steps_taken, expected.num_steps_taken)


def test_any_batch_gives_the_same(model, engine):
    batch = make_batch(model.config, LENGTHS)
    whole = model.generate(batch["input_ids"], num_refinement_steps=2)
    for size in (1, 7):
        rows = []
        for start in range(0, 40, size):
            rows += engine.generate(batch["input_ids"][start : start + size], num_refinement_steps=2).tolist()
        assert [[i for i in row if i] for row in rows] == tokens_of(whole)


def test_a_large_batch_has_a_thread_for_each_part(folder, model):
    """The same parts, and tokens, by any number of threads; about as much in each; a small batch is one part."""
    of_one, of_two = (LvnarOnnxModel.from_pretrained(folder, num_threads=number) for number in (1, 2))
    batch = make_batch(model.config, LENGTHS)
    expected = of_one.generate(**batch, num_refinement_steps=2, return_dict_in_generate=True)
    output = of_two.generate(**batch, num_refinement_steps=2, return_dict_in_generate=True)
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.num_steps_taken, expected.num_steps_taken)
    assert torch.equal(output.num_positions, expected.num_positions)
    lengths = [length for length, _ in LENGTHS]
    parts = of_two.graph.parts(lengths)
    assert len(parts) == (2 if model.config.alignment == "length" else 4)
    assert of_one.graph.parts(lengths) == parts
    assert sorted(row for part in parts for row in part) == list(range(40))
    loads = [sum(lengths[row] for row in part) for part in parts]
    assert max(loads) < 1.5 * sum(loads) / len(loads)
    threads = []
    of_two.graph.parts.map(lambda part, is_alone: threads.append(is_alone), parts)
    assert threads == [False] * len(parts)
    assert of_two.graph.parts([9] * 8) == [list(range(8))]


def test_any_number_of_steps_and_any_whole_numbers(model, engine):
    """Of sentences that stop by themselves, and of those whose translations alternate."""
    input_ids = make_batch(model.config, LENGTHS)["input_ids"]
    output = model.generate(input_ids, num_refinement_steps=50, return_dict_in_generate=True)
    rows = (output.num_steps_taken < 50).nonzero()[:3, 0]
    assert len(rows) == 3
    input_ids = input_ids[rows]
    expected = model.generate(input_ids, num_refinement_steps=50)
    for num_steps in (50, sys.maxsize, 10**20):
        assert torch.equal(engine.generate(input_ids.int(), num_refinement_steps=num_steps), expected)
    input_ids = make_batch(model.config, [(2 + n % 12, 5) for n in range(64)], seed=1)["input_ids"]
    for num_steps in (9, 10**9, 10**9 + 1, 2**70):
        options = {"num_refinement_steps": num_steps, "return_dict_in_generate": True}
        ours, theirs = (m.generate(input_ids, **options) for m in (engine, model))
        assert torch.equal(ours.num_steps_taken, theirs.num_steps_taken) and ours.num_steps_taken.max() < 200
        assert tokens_of(ours.sequences) == tokens_of(theirs.sequences)


def test_numbers_that_are_not_finite_raise(model, engine, tmp_path):
    """As the graph of a model with absurd weights gives them."""
    graph = onnx.load(str(engine.file))
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and list(tensor.dims) == list(model.output_weight.shape):
            tensor.CopyFrom(onnx.numpy_helper.from_array(model.output_weight.detach().numpy() * 1e38, tensor.name))
    file = tmp_path / "model.onnx"
    onnx.save(graph, str(file))
    absurd = LvnarOnnxModel(model.config, model.generation_config, file)
    with pytest.raises(ValueError, match="values that are not finite"):
        absurd.generate(make_batch(model.config, [(5, 4), (3, 4)])["input_ids"])


@of_ctc
def test_cells_are_collapsed_in_the_graph(folder, model, engine):
    """Against the definition; blanks, repetitions and sentences of nothing but blanks are among the cells."""
    batch = make_batch(model.config, LENGTHS + [(1, 1)] * 20)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "num_refinement_steps": 0}
    cell_mask = ctc_cell_mask(batch["attention_mask"], model.config.upsampling_ratio)
    with torch.no_grad():
        source = model.encode(batch["input_ids"], batch["attention_mask"])
        logits = model.decode(source, source.prior_means, cell_mask)
    likeliest_cells = ReferenceLvnar({}, model.config).likeliest_cells
    numbers = cell_mask.sum(-1).tolist()
    rows = [likeliest_cells(list(of_sentence[:number])) for of_sentence, number in zip(logits, numbers, strict=True)]
    lowered = logits - model.config.blank_penalty * (torch.arange(logits.shape[-1]) == 0)
    plainly = [row[:number] for row, number in zip(lowered.argmax(-1).tolist(), numbers, strict=True)]
    assert list(map(collapsed, plainly)) != list(map(collapsed, rows))  # some equal words would be merged
    expected = list(map(collapsed, rows))
    num_blanks, num_tokens = sum(row.count(0) for row in rows), sum(map(len, expected))
    assert not all(map(any, rows)) and 0 < num_blanks < num_blanks + num_tokens < cell_mask.sum()
    output = engine.generate(**inputs, return_dict_in_generate=True)
    assert tokens_of(output.sequences) == expected
    assert output.num_positions.tolist() == [cell_mask.sum()] * 2
    # Random weights are sensitive to 8 bits; what is wrong in the graph would change every sentence.
    others = LvnarOnnxModel.from_pretrained(folder, precision="int8").generate(**inputs)
    num_equal = sum(row == other for row, other in zip(expected, tokens_of(others), strict=True))
    assert 25 <= num_equal < 60


@of_the_model_that_ships
def test_int8_differs_in_few_sentences_and_costs_no_bleu(repository, model, sample_texts):
    sources, references = sample_texts
    engine = LvnarOnnxModel.from_pretrained(repository, precision="int8", num_threads=1)
    tokenizer = AutoTokenizer.from_pretrained(repository)
    hypotheses, others = (translate_texts(m, tokenizer, sources, num_refinement_steps=1) for m in (model, engine))
    num_different = sum(map(str.__ne__, hypotheses, others))
    bleu, other_bleu = (corpus_scores(texts, references)["bleu"]["score"] for texts in (hypotheses, others))
    print(f"int8: {num_different} of {len(sources)} sentences differ, BLEU {other_bleu:.2f} instead of {bleu:.2f}")
    assert 0 < num_different <= 0.25 * len(sources)
    assert abs(bleu - other_bleu) <= 1.0  # of 300 sentences; docs/EXPERIMENTS.md has the whole test set


@of_the_model_that_ships
def test_the_pipeline_takes_it(repository, model, engine, sample_texts):
    tokenizer = AutoTokenizer.from_pretrained(repository)
    texts = [*sample_texts[0][:6], ""]
    translator = pipeline("translation", model=engine, tokenizer=tokenizer, device="cpu")
    expected = pipeline("translation", model=model, tokenizer=tokenizer, device="cpu")
    for options in ({}, {"num_refinement_steps": 0, "batch_size": 3}):
        assert translator(texts, truncation=True, **options) == expected(texts, truncation=True, **options)


@of_the_model_that_ships
def test_it_refuses_what_pytorch_refuses(engine):
    with pytest.raises(ValueError, match="num_beams=4 steers autoregressive decoding"):
        engine.generate(torch.tensor([[5, 1]]), num_beams=4)
    for name in ("output_scores", "output_confidences"):
        with pytest.raises(ValueError, match=f"{name}=True needs the PyTorch model"):
            engine.generate(torch.tensor([[5, 1]]), return_dict_in_generate=True, **{name: True})
    with pytest.raises(ValueError, match="The source has 129 tokens; the model takes at most"):
        engine.generate(torch.full((1, 129), 5))
    with pytest.raises(ValueError, match="LvnarOnnxModel is on cpu and cannot go to cuda"):
        engine.to("cuda")
    assert engine.to("cpu") is engine and engine.can_generate()


def test_a_repository_without_a_graph_says_how_to_make_it(tiny_repository, repository, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no onnx/model_int8.onnx. Make it: lvnar export --model"):
        LvnarOnnxModel.from_pretrained(tiny_repository, precision="int8")
    with pytest.raises(ValueError, match="precision is 'int4'; it must be one of float32, int8"):
        LvnarOnnxModel.from_pretrained(repository, precision="int4")
    with pytest.raises(FileExistsError, match="--overwrite"):
        export(str(repository))
    with pytest.raises(ValueError, match="is no folder: give --output-folder"):
        export("somebody/model")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        LvnarOnnxModel.from_pretrained(repository)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'lvnar-hf\[export\]'"):
        export(str(tiny_repository), str(tmp_path))


def damaged(graph: bytes) -> dict[str, bytes]:
    model = onnx.load_from_string(graph)
    model.opset_import[0].version = 99
    other = onnx.load_from_string(graph)
    other.graph.input[2].name = "num_steps"
    for node in other.graph.node:
        node.input[:] = ["num_steps" if name == "num_refinement_steps" else name for name in node.input]
    fewer = onnx.load_from_string(graph)
    del fewer.graph.output[1]
    older, nameless = onnx.load_from_string(graph), onnx.load_from_string(graph)
    onnx.helper.set_model_props(older, {VERSION_KEY: "0"})
    del nameless.metadata_props[:]
    outputs = {"outputs": fewer.SerializeToString()}
    return outputs | {
        "older": older.SerializeToString(),
        "oldest": nameless.SerializeToString(),
        "cut": graph[: len(graph) // 2],
        "opset": model.SerializeToString(),
        "inputs": other.SerializeToString(),
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("outputs", "has the outputs sequences, num_positions; a graph of this version has .*--overwrite"),
        ("older", "is a graph of version 0, .* Make it again: lvnar export"),
        ("oldest", "is a graph of version None, .* Make it again: lvnar export"),
        ("cut", r"cannot load .*model\.onnx"),
        ("opset", r"cannot load .*model\.onnx.*[Oo]pset"),
        (
            "inputs",
            "has the inputs input_ids, .*, num_steps, max_length, .*; a graph of this version has .*--overwrite",
        ),
    ],
)
def test_a_damaged_graph_is_refused(repository, tmp_path, damage, message):
    folder = tmp_path / "damaged"
    shutil.copytree(repository, folder)
    (folder / FILES["float32"]).write_bytes(damaged((repository / FILES["float32"]).read_bytes())[damage])
    with pytest.raises(ValueError, match=message):
        LvnarOnnxModel.from_pretrained(folder)


def test_the_graph_has_one_copy_of_each_weight_and_no_traces_of_this_machine(folder, model):
    content = (folder / FILES["float32"]).read_bytes()
    graph = onnx.load_from_string(content).graph
    contents = [tensor.raw_data for tensor in graph.initializer if len(tensor.raw_data) > 512]
    assert len(contents) == len(set(contents)) > 20
    # Of one alignment, what the other one needs is not there.
    is_ctc = model.config.alignment == "ctc"
    assert any("length_predictor" in tensor.name for tensor in graph.initializer) is not is_ctc
    (loop,) = (node for node in graph.node if node.op_type == "Loop")
    body = loop.attribute[0].g
    assert not body.initializer
    # Attention is one operation; a round computes of the sentences that have not stopped, and of no others.
    config = model.config
    num_attentions = {"loop": 0, "rest": sum(node.op_type == "MultiHeadAttention" for node in graph.node)}
    for part in with_subgraphs(body):
        num_attentions["loop"] += sum(node.op_type == "MultiHeadAttention" for node in part.node)
    num_layers = 2 * (config.num_posterior_decoder_layers + config.num_decoder_layers)
    assert num_attentions["loop"] == config.num_posterior_encoder_layers + num_layers
    assert num_attentions["rest"] == config.num_prior_layers
    of_alignment = "carried_states" if is_ctc else "hidden_states"
    for name in ("attention_mask", "embeddings", of_alignment, "prior_means", "candidates", "decoder_keys_0"):
        users = {node.op_type for part in with_subgraphs(body) for node in part.node if name in node.input}
        assert users == {"Compress"}, name
    assert is_ctc is not any("hidden_states" in node.input for node in body.node)
    for trace in (b"/work", b"site-packages", b"lvnar_hf/", b".py"):
        assert trace not in content
