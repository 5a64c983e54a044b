"""The compiled engine: tokens, steps, bounds and options as those of the model itself, in padded shapes.

Without a GPU its parts are traced as for one, in the same shapes, and each graph then runs as it was traced.
"""

import pytest
import torch
from conftest import make_batch, make_ctc_model, make_model, tiny_config
from transformers import pipeline

from lvnar_hf.engines.compiled import CUDA_BUCKETS, Buckets, LvnarCompiledModel
from lvnar_hf.jobs import line_translator

EVERY_LENGTH = [(1 + (7 * row) % 39, 1) for row in range(40)]
ONE_LAYER = {"num_prior_layers": 1, "num_posterior_decoder_layers": 1, "num_decoder_layers": 1}  # traced the sooner
BATCHES = [[(5, 1)], [(1, 1)], [(39, 1)], [(9, 1)] * 9, [(3, 1), (8, 1), (1, 1)], EVERY_LENGTH]


class TracedModel(LvnarCompiledModel):
    """On the CPU, without a compiler."""

    device_types = ("cpu",)
    compiler_options = {"backend": "eager"}


@pytest.fixture(scope="module", params=["length", "ctc"])
def model(request):
    return make_ctc_model(**ONE_LAYER) if request.param == "ctc" else make_model(tiny_config(**ONE_LAYER))


@pytest.fixture(scope="module")
def engine(model):
    """Traced for one sentence and for several; nothing may be traced after that."""
    engine = TracedModel(model)
    torch._dynamo.utils.counters.clear()
    assert engine.warm_up() > 0
    return engine


@pytest.fixture
def no_new_graph():
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    yield
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before > 0


@pytest.mark.parametrize("num_steps", [0, 1, 3, 8])
@pytest.mark.parametrize("options", [{}, {"max_length": 1}, {"remove_repetitions": False}])
@pytest.mark.parametrize("buckets", [CUDA_BUCKETS, Buckets(5, False)])
def test_it_is_the_model_token_by_token(model, engine, buckets, num_steps, options, monkeypatch, no_new_graph):
    monkeypatch.setattr(engine, "buckets", buckets)
    options = {**options, "num_refinement_steps": num_steps, "return_dict_in_generate": True}
    options["output_confidences"] = True  # and with them the bounds
    for seed, lengths in enumerate(BATCHES):
        batch = make_batch(model.config, lengths, seed)
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], **options}
        expected, output = model.generate(**inputs), engine.generate(**inputs)
        assert torch.equal(output.sequences, expected.sequences)
        assert torch.equal(output.num_steps_taken, expected.num_steps_taken)
        assert len(output.sequences_per_step) == len(expected.sequences_per_step)
        for given, wanted in zip(output.sequences_per_step, expected.sequences_per_step, strict=True):
            assert torch.equal(given, wanted)
        torch.testing.assert_close(output.lower_bounds, expected.lower_bounds, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(output.token_confidences, expected.token_confidences, rtol=1e-3, atol=1e-5)


def test_sentences_that_stop_leave_the_batch(model, engine, monkeypatch, no_new_graph):
    """And the copies of them that fill a batch, to the next power of 2 and no further."""
    monkeypatch.setattr(engine, "buckets", Buckets(length_multiple=1, pads_batch=True))
    sizes = []
    infer = engine.infer_posterior
    monkeypatch.setattr(
        engine, "infer_posterior", lambda source, *target: sizes.append(len(target[0])) or infer(source, *target)
    )
    batch = make_batch(model.config, EVERY_LENGTH)
    options = {"num_refinement_steps": 8, "max_length": 2, "return_dict_in_generate": True}
    output = engine.generate(batch["input_ids"], **options)
    assert sizes[0] == 64 and sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 1
    for step, size in enumerate(sizes):
        num_refined = int((output.num_steps_taken > step).sum())
        assert size & (size - 1) == 0 and num_refined <= size < 2 * num_refined


def test_the_shapes_that_inputs_are_padded_to():
    assert [Buckets(1, False).length(length) for length in (1, 2, 3, 25)] == [2, 2, 3, 25]
    assert [CUDA_BUCKETS.length(length) for length in (1, 8, 9, 25)] == [8, 8, 16, 32]
    assert [Buckets(1, False).batch_size(size) for size in (1, 3, 32)] == [1, 3, 32]
    assert [CUDA_BUCKETS.batch_size(size) for size in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]
    with pytest.raises(ValueError, match="length_multiple is 0; it must be a whole number of at least 1"):
        Buckets(0, False)


def test_in_the_pipeline_and_for_files(tiny_repository, sample_tokenizer, sample_texts, monkeypatch):
    engine = TracedModel.from_pretrained(tiny_repository, device="cpu")
    texts = [text for text in sample_texts[0] if len(text) < 40][:8]
    expected = pipeline("translation", model=engine.model, tokenizer=sample_tokenizer)(texts, batch_size=16)
    assert pipeline("translation", model=engine, tokenizer=sample_tokenizer)(texts, batch_size=16) == expected
    with pytest.raises(ValueError, match="needs a GPU with CUDA; cpu is none here"):
        line_translator.load_translator(str(tiny_repository), "compiled")


def test_the_cpu_is_for_other_engines(model):
    with pytest.raises(ValueError, match=r"needs a GPU with CUDA; cpu is none here\. On the CPU ONNX"):
        LvnarCompiledModel(model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="needs a GPU with CUDA; cuda is none here"):
        LvnarCompiledModel.from_pretrained(tmp_path / "nothing")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(model):
    on_gpu = type(model)(model.config).eval().cuda()
    on_gpu.load_state_dict(model.state_dict())
    engine = LvnarCompiledModel(on_gpu)
    engine.warm_up(batch_sizes=[1, 8])
    options = {"num_refinement_steps": 3, "return_dict_in_generate": True, "output_scores": True}
    for seed, lengths in enumerate(BATCHES):
        batch = make_batch(model.config, lengths, seed)
        inputs = {name: batch[name].cuda() for name in ("input_ids", "attention_mask")}
        expected, output = on_gpu.generate(**inputs, **options), engine.generate(**inputs, **options)
        # Untrained, words are nearly equal, and two kernels round otherwise.
        assert (output.num_steps_taken != expected.num_steps_taken).float().mean() <= 0.1
        torch.testing.assert_close(output.lower_bounds[:, 0], expected.lower_bounds[:, 0], rtol=1e-3, atol=1e-2)


def test_it_refuses_what_the_model_refuses(model, engine, no_new_graph):
    with pytest.raises(ValueError, match="num_beams=4 steers autoregressive decoding"):
        engine.generate(torch.tensor([[5, 1]]), num_beams=4)
    with pytest.raises(ValueError, match="The source has 41 tokens; the model takes at most"):
        engine.generate(torch.full((1, 41), 5))
    with pytest.raises(ValueError, match="TracedModel is on cpu and cannot go to cuda"):
        engine.to("cuda")
    assert engine.to("cpu") is engine and engine.can_generate()
    model.decoder.train()
    with pytest.raises(ValueError, match="or a part of it, is in training mode"):
        engine.generate(torch.tensor([[5, 1]]))
    assert engine.eval() is engine and not model.decoder.training
