"""The beam search and the rescorer of ONNX Runtime: candidates, scores, options and errors as those of PyTorch."""

import json
import pickle
import shutil
import subprocess
import sys
from types import SimpleNamespace

import onnx
import pytest
import torch
from conftest import ROOT, make_batch, make_ctc_model, tokens_of
from transformers import BartConfig, BartForConditionalGeneration, MarianConfig, MarianMTModel

from lvnar_hf import LvnarTokenizer
from lvnar_hf.commands.export import export
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.search import CELL_FILES, RESCORER_FILES, OnnxRescorer
from lvnar_hf.files.fingerprints import StaleError
from lvnar_hf.hub.description import describe_model
from lvnar_hf.hub.verification import _package_ids
from lvnar_hf.jobs.light_translator import LightTranslator, load_light_translator
from lvnar_hf.jobs.line_translator import load_translator
from lvnar_hf.loading import load_model
from lvnar_hf.search_lvnar import rescorer_log_probs
from training.distillation.backends import StudentSettings
from training.distillation.student import StudentEngine
from training.distillation.teacher import Teacher

LENGTHS = [(1 + (5 * row) % 23, 4) for row in range(24)]
KEPT = {"num_return_candidates": 4, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    torch.manual_seed(4)
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_layers": 2, "decoder_layers": 2, "init_std": 0.5}
    sizes |= {"scale_embedding": True, "max_position_embeddings": 64, "activation_function": "swish"}
    config = MarianConfig(vocab_size=61, pad_token_id=0, eos_token_id=1, decoder_start_token_id=60, **sizes)
    folder = tmp_path_factory.mktemp("search") / "teacher"
    MarianMTModel(config).eval().save_pretrained(folder)
    result = export(str(folder))
    assert set(result["rescorer"]) == {"float32", "int8"}
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "model"
    make_ctc_model(vocab_size=61, target_vocab_size=None).save_pretrained(folder)
    assert export(str(folder), search=True)["float32"]["different_sentences"] == 0
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=[1, 2])
def engine(folder, request):
    return LvnarOnnxModel.from_pretrained(folder, num_threads=request.param, search=True)


@pytest.fixture(scope="module")
def shipped_for_search(shipped_with_graphs, tmp_path_factory):
    """The model that ships, and an untrained teacher of its vocabulary, with their graphs."""
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1, "init_std": 0.5}
    size = json.loads((shipped_with_graphs / "config.json").read_text())["vocab_size"]
    torch.manual_seed(2)
    config = MarianConfig(vocab_size=size, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **sizes)
    folder = tmp_path_factory.mktemp("teacher")
    MarianMTModel(config).save_pretrained(folder)
    export(str(folder))
    return {"model": shipped_with_graphs, "teacher": folder}


def _inputs(model):
    batch = make_batch(model.config, LENGTHS)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("num_steps", [0, 1, 3])
@pytest.mark.parametrize("options", [{}, {"max_length": 3}, {"token_bonus": 0.1}])
def test_candidates_and_scores_are_pytorchs(model, engine, num_steps, options):
    options = {"beam_size": 4, "num_refinement_steps": num_steps, **KEPT, **options}
    expected, found = model.generate(**_inputs(model), **options), engine.generate(**_inputs(model), **options)
    assert tokens_of(found.sequences) == tokens_of(expected.sequences)
    assert torch.equal(found.num_steps_taken, expected.num_steps_taken)
    for ours, theirs in zip(found.candidates, expected.candidates, strict=True):
        assert tokens_of(ours) == tokens_of(theirs)
    torch.testing.assert_close(found.candidate_scores, expected.candidate_scores, atol=1e-3, rtol=1e-4)
    assert len({len(row) for row in tokens_of(found.sequences)}) > 1 or "max_length" in options


def test_a_rescorers_choice_is_that_of_pytorchs(model, engine, teacher_folder):
    options = {"beam_size": 6, "num_refinement_steps": 1, **KEPT}
    expected = model.generate(**_inputs(model), **options, rescorer=load_model(teacher_folder).eval())
    rescorer = OnnxRescorer.from_pretrained(teacher_folder, "float32")
    found = engine.generate(**_inputs(model), **options, rescorer=rescorer)
    for ours, theirs in zip(found.candidates, expected.candidates, strict=True):
        assert tokens_of(ours) == tokens_of(theirs)
    torch.testing.assert_close(found.candidate_scores, expected.candidate_scores, atol=1e-4, rtol=1e-4)
    one = engine.generate(**_inputs(model), beam_size=6, num_refinement_steps=1, rescorer=rescorer)
    assert tokens_of(one) == tokens_of(found.sequences)
    by_beam = engine.generate(**_inputs(model), beam_size=6, num_refinement_steps=1)
    assert tokens_of(by_beam) != tokens_of(one)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_log_probabilities_are_the_teachers(teacher_folder, precision):
    """Of as many candidates as do not fit in one call; those of a sentence alone are the same."""
    teacher, rescorer = load_model(teacher_folder).eval(), OnnxRescorer.from_pretrained(teacher_folder, precision)
    inputs = _inputs(teacher)
    generator = torch.Generator().manual_seed(1)
    candidates = [
        [torch.randint(2, 60, (1 + (row + place) % 9,), generator=generator).tolist() for place in range(row % 5)]
        for row in range(len(LENGTHS))
    ]
    scores = rescorer.log_probs(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy(), candidates)
    tolerance = 1e-4 if precision == "float32" else 1.0
    for row, of_sentence in enumerate(candidates):
        for ids in of_sentence:
            source = inputs["input_ids"][row : row + 1], inputs["attention_mask"][row : row + 1]
            states = teacher.get_encoder()(input_ids=source[0], attention_mask=source[1])[0]
            target = torch.tensor([ids])
            expected = rescorer_log_probs(teacher, states, source[1], target, torch.ones_like(target)) / len(ids)
            assert scores.pop(0) == pytest.approx(expected.item(), abs=tolerance)
    assert not scores
    assert len(rescorer._parts([[[1] * 20] * 8] * 9)) == 3
    copied = pickle.loads(pickle.dumps(rescorer))
    assert copied.log_probs(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy(), [[[5, 1]]] * 24)


def test_a_beam_that_is_margins_apart_is_not_rescored(model, engine, teacher_folder):
    rescorer = OnnxRescorer.from_pretrained(teacher_folder, "float32")
    for other, its_rescorer in ((engine, rescorer), (model, load_model(teacher_folder).eval())):
        options = {"beam_size": 6, "num_refinement_steps": 0, "rescorer": its_rescorer}
        nearest = other.generate(**_inputs(model), **options, rescoring_margin=0.0)
        likeliest = other.generate(**_inputs(model), beam_size=6, num_refinement_steps=0)
        assert tokens_of(nearest) == tokens_of(likeliest)
        assert tokens_of(other.generate(**_inputs(model), **options, rescoring_margin=50.0)) != tokens_of(likeliest)


def test_a_language_model_and_spare_rows(model, engine):
    class Least:
        def start(self):
            return 0

        def extend(self, state, token_id):
            return state + 1, -0.1 * (token_id % 7) * (state + 1)

    class Tokenizer:
        target_vocab_size = 50

        def find_repetitions(self, *_):
            return []

    options = {"beam_size": 5, "num_refinement_steps": 0, "language_model": Least(), "language_model_weight": 2.0}
    expected, found = model.generate(**_inputs(model), **options), engine.generate(**_inputs(model), **options)
    assert tokens_of(found) == tokens_of(expected)
    options = {"beam_size": 5, "num_refinement_steps": 0, "tokenizer": Tokenizer()}
    assert engine.generate(**_inputs(model), **options).max() < 50 <= found.max()


def test_numbers_that_are_not_finite_raise(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / CELL_FILES["float32"]
    graph = onnx.load(str(file))
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            values = onnx.numpy_helper.to_array(tensor) * 1e38
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(graph, str(file))
    engine = LvnarOnnxModel.from_pretrained(tmp_path / "model", search=True)
    with pytest.raises(ValueError, match="not finite"):
        engine.generate(torch.tensor([[5, 6, 1]]), beam_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_latent_candidates": 2}, "num_latent_candidates needs the PyTorch model"),
        ({"beam_size": 2, "candidate_score": "bound"}, "candidate_score='bound' needs the PyTorch model"),
        ({"beam_size": 2, "num_return_candidates": 2}, "needs return_dict_in_generate"),
    ],
)
def test_it_refuses_what_the_graphs_do_not_have(engine, options, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(torch.tensor([[5, 6, 1]]), **options)


def test_rescorers_are_of_the_models_engine(model, engine, folder, teacher_folder):
    """And a model that was loaded without the graph of its cells says how to load it."""
    ids = torch.tensor([[5, 6, 1]])
    with pytest.raises(ValueError, match=r"rescorer is a MarianMTModel.*OnnxRescorer\.from_pretrained"):
        engine.generate(ids, beam_size=2, rescorer=load_model(teacher_folder))
    with pytest.raises(ValueError, match="rescorer is a OnnxRescorer; beside PyTorch"):
        model.generate(ids, beam_size=2, rescorer=OnnxRescorer.from_pretrained(teacher_folder))
    with pytest.raises(ValueError, match="search=True"):
        LvnarOnnxModel.from_pretrained(folder).generate(ids, beam_size=2)


def test_what_is_missing_or_stale_says_how_to_make_it(folder, teacher_folder, tmp_path):
    make_ctc_model().save_pretrained(tmp_path / "plain")
    export(str(tmp_path / "plain"))
    with pytest.raises(FileNotFoundError, match=r"cells\.onnx. Make it: lvnar export --model .* --search"):
        LvnarOnnxModel.from_pretrained(tmp_path / "plain", search=True)
    with pytest.raises(FileNotFoundError, match=r"rescorer_int8\.onnx. Make it: lvnar export --model"):
        OnnxRescorer.from_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="precision is 'int4'"):
        OnnxRescorer.from_pretrained(teacher_folder, "int4")
    shutil.copytree(folder, tmp_path / "changed")
    shutil.copytree(teacher_folder, tmp_path / "other")
    changed = load_model(folder)
    changed.decoder.latent_proj.bias.data += 1.0
    changed.save_pretrained(tmp_path / "changed")
    with pytest.raises(StaleError):
        LvnarOnnxModel.from_pretrained(tmp_path / "changed", search=True)
    teacher = load_model(teacher_folder)
    teacher.model.shared.weight.data += 1.0
    teacher.save_pretrained(tmp_path / "other")
    with pytest.raises(StaleError, match="other weights"):
        OnnxRescorer.from_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "plain" / "onnx" / "model.onnx", tmp_path / "plain" / RESCORER_FILES["float32"])
    with pytest.raises(ValueError, match="has the inputs"):
        OnnxRescorer.from_pretrained(tmp_path / "plain", "float32")


def test_other_types_are_not_exported(tmp_path):
    sizes = {"d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_layers": 1, "decoder_layers": 1}
    config = BartConfig(vocab_size=20, encoder_attention_heads=1, decoder_attention_heads=1, **sizes)
    BartForConditionalGeneration(config).save_pretrained(tmp_path / "bart")
    with pytest.raises(ValueError, match="The model is a bart; lvnar export is for models of type lvnar"):
        export(str(tmp_path / "bart"))
    assert not (tmp_path / "bart" / "onnx").exists()


def test_the_commands_search_in_onnx_where_the_graphs_are(shipped_for_search, tmp_path):
    """The same by `load_translator`, and without torch; "auto" is PyTorch where a graph is missing."""
    search = {"beam_size": 3, "rescorer": str(shipped_for_search["teacher"])}
    lines = (ROOT / "tests/fixtures/tatoeba_en-de/test.en").read_text("utf-8").splitlines()[:40]
    name = str(shipped_for_search["model"])
    options = {"max_batch_tokens": 512, "device": "cpu", "preserve_format": True, "search": search}
    light = load_light_translator(name, "auto", num_refinement_steps=0, num_threads=1, **options)
    full = load_translator(name, "auto", num_refinement_steps=0, **options)
    assert isinstance(light, LightTranslator) and full.engine == light.engine == "onnx-int8"
    assert light.fingerprint == full.fingerprint
    assert light.translate(lines) == full.translate(lines)
    plain = load_light_translator(name, "auto", num_refinement_steps=0, num_threads=1, **options | {"search": {}})
    assert plain.translate(lines).texts != light.translate(lines).texts
    shutil.copytree(shipped_for_search["teacher"], tmp_path / "teacher", ignore=shutil.ignore_patterns("onnx"))
    options["search"] = {**search, "rescorer": str(tmp_path / "teacher")}
    assert load_light_translator(name, "auto", num_refinement_steps=0, num_threads=1, **options) is None
    assert load_translator(name, "auto", **options).engine == "torch"
    with pytest.raises(FileNotFoundError, match="has no onnx/rescorer_int8"):
        load_translator(name, "onnx-int8", **options)
    with pytest.raises(ValueError, match="compiled gives one translation"):
        load_translator(name, "compiled", **options)


def test_a_student_from_whom_its_teacher_chooses_searches_in_int8_graphs(shipped_for_search):
    name, folder = str(shipped_for_search["model"]), str(shipped_for_search["teacher"])
    tokenizer = LvnarTokenizer.from_pretrained(name)
    teacher = Teacher(folder, MarianMTModel.from_pretrained(folder), tokenizer, "fingerprint")
    own = SimpleNamespace(description={}, translate=lambda source_ids, on_progress: [])
    student = StudentEngine(own, teacher, StudentSettings(name, 3, 0, -1e9), 100, "cpu")
    assert student.description["int8_graphs"]
    source_ids = tokenizer(["Tom likes his old car.", "Where is the station?", "Thanks!"])["input_ids"]
    texts = tokenizer.batch_decode([output.ids for output in student.translate(source_ids)])
    engine = LvnarOnnxModel.from_pretrained(name, precision="int8", search=True)
    search = {"beam_size": 3, "num_refinement_steps": 0, "rescorer": OnnxRescorer.from_pretrained(folder)}
    found = engine.generate(**tokenizer.pad({"input_ids": source_ids}, return_tensors="pt"), **search)
    assert texts == tokenizer.batch_decode(found, skip_special_tokens=True) and all(texts)


def test_info_and_verification_look_at_the_cells(shipped_for_search, tmp_path):
    folder = shutil.copytree(shipped_for_search["model"], tmp_path / "model")
    described = describe_model(str(folder))
    assert described["search onnx"] == described["search onnx-int8"] == "ready"
    texts = ["Where is the station?"]
    assert _package_ids(folder, texts)
    graph = onnx.load(str(folder / CELL_FILES["float32"]))
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            values = onnx.numpy_helper.to_array(tensor)[::-1].copy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(graph, str(folder / CELL_FILES["float32"]))
    with pytest.raises(ValueError, match=r"cells\.onnx gives other tokens than the weights"):
        _package_ids(folder, texts)
    (folder / CELL_FILES["float32"]).unlink()
    assert describe_model(str(folder))["search onnx"].startswith("not ready:")


def test_the_command_translates_without_torch(shipped_for_search):
    command = [sys.executable, "-X", "importtime", "-m", "lvnar_hf", "translate", "--num-refinement-steps", "0"]
    command += ["--model", str(shipped_for_search["model"]), "--beam-size", "4"]
    command += ["--rescorer", str(shipped_for_search["teacher"]), "Where is the station?"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip()
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "onnxruntime" in imported and not {"torch", "transformers"} & imported


def test_the_graphs_have_no_traces_of_this_machine(folder):
    assert {path.name for path in (folder / "onnx").iterdir()} >= {"cells.onnx", "cells_int8.onnx"}
    for file in CELL_FILES.values():
        content = (folder / file).read_bytes()
        assert str(ROOT).encode() not in content and b"/tmp" not in content
    assert json.loads((folder / "config.json").read_text())["alignment"] == "ctc"
