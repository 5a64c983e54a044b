"""The ONNX graphs and their engine: tokens, steps, options and errors as those of PyTorch."""

import shutil
import sys

import onnx
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from lvnar_hf.onnx_engine import LvnarOnnxModel
from lvnar_hf.onnx_export import FILES, _with_subgraphs, export_onnx
from tests.conftest import ROOT, make_batch, make_model, tiny_config
from training import export
from training.translation import translate_texts
from training.translation_quality.measures import corpus_scores

LENGTHS = [(1 + (7 * row) % 39, 1) for row in range(40)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The model that ships with its graphs, made by the command."""
    folder = tmp_path_factory.mktemp("onnx") / "shipped"
    shutil.copytree(ROOT / "model_cards" / "lvnar-tatoeba-en-de", folder)
    result = export.main(["--model", str(folder)])
    assert result["float32"]["different_sentences"] == 0
    assert result["int8"]["bytes"] < result["float32"]["bytes"]
    return folder


@pytest.fixture(scope="module")
def model(repository):
    return AutoModelForSeq2SeqLM.from_pretrained(repository, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def engine(repository):
    return LvnarOnnxModel.from_pretrained(repository)


@pytest.mark.parametrize("num_steps", [0, 1, 3, 8])
@pytest.mark.parametrize("options", [{}, {"max_length": 5}, {"remove_repetitions": False}])
def test_float32_is_pytorch_token_by_token(model, engine, num_steps, options):
    """Every length there is, in one batch; the steps that each sentence takes too."""
    for seed in range(3):
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
        assert [[i for i in row if i] for row in rows] == [[i for i in row if i] for row in whole.tolist()]


def test_any_number_of_steps_and_any_whole_numbers(model, engine):
    input_ids = make_batch(model.config, LENGTHS[:3])["input_ids"]
    expected = model.generate(input_ids, num_refinement_steps=50)
    for num_steps in (50, sys.maxsize, 10**20):
        assert torch.equal(engine.generate(input_ids.int(), num_refinement_steps=num_steps), expected)


def test_a_vocabulary_without_divisors(tmp_path):
    model = make_model(tiny_config(vocab_size=257))  # prime, and larger than the parts of the argmax
    engine = LvnarOnnxModel(model.config, model.generation_config, export_onnx(model, tmp_path)["float32"])
    batch = make_batch(model.config, LENGTHS)
    for num_steps in (0, 2):
        options = {"attention_mask": batch["attention_mask"], "num_refinement_steps": num_steps}
        assert torch.equal(
            engine.generate(batch["input_ids"], **options), model.generate(batch["input_ids"], **options)
        )


def test_int8_differs_in_few_sentences_and_costs_no_bleu(repository, model, sample_texts):
    sources, references = sample_texts
    engine = LvnarOnnxModel.from_pretrained(repository, precision="int8", num_threads=1)
    tokenizer = AutoTokenizer.from_pretrained(repository)
    hypotheses, others = (translate_texts(m, tokenizer, sources, num_refinement_steps=1) for m in (model, engine))
    num_different = sum(map(str.__ne__, hypotheses, others))
    bleu, other_bleu = (corpus_scores(texts, references)["bleu"]["score"] for texts in (hypotheses, others))
    print(f"int8: {num_different} of {len(sources)} sentences differ, BLEU {other_bleu:.2f} instead of {bleu:.2f}")
    assert 0 < num_different <= 0.25 * len(sources)
    assert abs(bleu - other_bleu) <= 1.0  # of 300 sentences; EXPERIMENTS.md has the whole test set


def test_the_pipeline_takes_it(repository, model, engine, sample_texts):
    tokenizer = AutoTokenizer.from_pretrained(repository)
    texts = [*sample_texts[0][:6], ""]
    translator = pipeline("translation", model=engine, tokenizer=tokenizer, device="cpu")
    expected = pipeline("translation", model=model, tokenizer=tokenizer, device="cpu")
    for options in ({}, {"num_refinement_steps": 0, "batch_size": 3}):
        assert translator(texts, truncation=True, **options) == expected(texts, truncation=True, **options)


def test_it_refuses_what_pytorch_refuses(engine):
    with pytest.raises(ValueError, match="num_beams=4 steers autoregressive decoding"):
        engine.generate(torch.tensor([[5, 1]]), num_beams=4)
    with pytest.raises(ValueError, match="output_scores=True needs the PyTorch model"):
        engine.generate(torch.tensor([[5, 1]]), return_dict_in_generate=True, output_scores=True)
    with pytest.raises(ValueError, match="The source has 129 tokens; the model takes at most"):
        engine.generate(torch.full((1, 129), 5))
    with pytest.raises(ValueError, match="LvnarOnnxModel is on cpu and cannot go to cuda"):
        engine.to("cuda")
    assert engine.to("cpu") is engine and engine.can_generate()


def test_a_repository_without_a_graph_says_how_to_make_it(tiny_repository, repository, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no onnx/model_int8.onnx. Make it: python training/export.py --model"):
        LvnarOnnxModel.from_pretrained(tiny_repository, precision="int8")
    with pytest.raises(ValueError, match="precision is 'int4'; it must be one of float32, int8"):
        LvnarOnnxModel.from_pretrained(repository, precision="int4")
    with pytest.raises(FileExistsError, match="--overwrite"):
        export.main(["--model", str(repository)])
    with pytest.raises(ValueError, match="is no folder: give --output_folder"):
        export.main(["--model", "somebody/model"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        LvnarOnnxModel.from_pretrained(repository)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'lvnar-hf\[export\]'"):
        export.main(["--model", str(tiny_repository), "--output_folder", str(tmp_path)])


def damaged(graph: bytes) -> dict[str, bytes]:
    model = onnx.load_from_string(graph)
    model.opset_import[0].version = 99
    other = onnx.load_from_string(graph)
    other.graph.input[2].name = "num_steps"
    for node in other.graph.node:
        node.input[:] = ["num_steps" if name == "num_refinement_steps" else name for name in node.input]
    return {"cut": graph[: len(graph) // 2], "opset": model.SerializeToString(), "inputs": other.SerializeToString()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
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


def test_the_graph_has_one_copy_of_each_weight_and_no_traces_of_this_machine(repository, model):
    content = (repository / FILES["float32"]).read_bytes()
    graph = onnx.load_from_string(content).graph
    contents = [tensor.raw_data for tensor in graph.initializer if len(tensor.raw_data) > 512]
    assert len(contents) == len(set(contents)) > 50
    (loop,) = (node for node in graph.node if node.op_type == "Loop")
    body = loop.attribute[0].g
    assert not body.initializer
    # Attention is one operation; a round computes of the sentences that have not stopped, and of no others.
    config = model.config
    num_attentions = {"loop": 0, "rest": sum(node.op_type == "MultiHeadAttention" for node in graph.node)}
    for part in _with_subgraphs(body):
        num_attentions["loop"] += sum(node.op_type == "MultiHeadAttention" for node in part.node)
    num_layers = 2 * (config.num_posterior_decoder_layers + config.num_decoder_layers)
    assert num_attentions["loop"] == config.num_posterior_encoder_layers + num_layers
    assert num_attentions["rest"] == config.num_prior_layers
    for name in ("attention_mask", "embeddings", "hidden_states", "prior_means", "candidates", "decoder_keys_0"):
        users = {node.op_type for part in _with_subgraphs(body) for node in part.node if name in node.input}
        assert users == {"Compress"}, name
    for trace in (b"/work", b"site-packages", b"lvnar_hf/", b".py"):
        assert trace not in content
