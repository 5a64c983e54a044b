"""The teacher's engines: both give the same translations, and what one cannot do is said."""

import copy

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, MarianMTModel, T5Config, T5ForConditionalGeneration

from training.distillation import backends as teacher_engines
from training.distillation.backends import (
    CTranslate2Engine,
    EngineError,
    SearchSettings,
    TransformersEngine,
    choose_engine,
)
from training.distillation.teacher import Teacher
from training.sections import TeacherArguments

SEARCH = SearchSettings(num_beams=4, length_penalty=1.0, max_target_length=12, max_batch_tokens=100)


def make_teacher_model(
    vocab_size: int, target_vocab_size: int | None = None, noise: float = 0.3, end_bias: float = 3.0
) -> MarianMTModel:
    """A tiny Marian with weights so large that its translations differ, and some end before the limit."""
    sizes = TeacherArguments(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=2,
        max_position_embeddings=40,
    )
    torch.manual_seed(0)
    model = MarianMTModel(sizes.to_config(vocab_size, target_vocab_size)).eval()
    enlarge_weights(model, noise)
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(4)
        model.final_logits_bias[0, 1] = end_bias
    return model


def enlarge_weights(model, noise: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "positions" not in name:
                parameter.add_(torch.randn_like(parameter) * noise)


def t5_model(vocab_size: int, tied: bool) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes: dict = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    kind = "relu" if tied else "gated-gelu"
    sizes |= {"vocab_size": vocab_size, "decoder_start_token_id": 0, "pad_token_id": 0}
    config = T5Config(**sizes, feed_forward_proj=kind, tie_word_embeddings=tied)
    model = T5ForConditionalGeneration(config).eval()
    enlarge_weights(model, 0.2)
    with torch.no_grad():
        model.get_output_embeddings().weight[1] *= 1.5
    return model


MODELS = {
    "joint": lambda: make_teacher_model(100, noise=0.2, end_bias=1.0),
    "two vocabularies": lambda: make_teacher_model(100, 120),
    "t5": lambda: t5_model(100, tied=True),
    "t5 v1.1": lambda: t5_model(100, tied=False),
}


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("model", MODELS)
def test_ctranslate2_equals_transformers(sample_tokenizer, model, num_beams):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 15, (120,), generator=generator).sort(descending=True)[0]
    sources = [[*torch.randint(3, 100, (int(n),), generator=generator).tolist(), 1] for n in lengths]
    teacher = Teacher("tiny", MODELS[model](), sample_tokenizer, "")
    search = SearchSettings(num_beams, 0.8, 12, 100)
    progress: list[int] = []
    outputs = CTranslate2Engine(teacher, search).translate(sources, progress.append)
    assert sum(progress) == sum(map(len, sources)) and len(progress) > 5
    if num_beams > 1:
        teacher.model.generation_config.early_stopping = True  # CTranslate2's rule
    expected = TransformersEngine(teacher, search).translate(sources)
    assert sum(one == other for one, other in zip(outputs, expected, strict=True)) >= 0.95 * len(sources)
    assert len({tuple(output.ids) for output in expected}) > 10, "translations that differ"
    if num_beams > 1:
        assert len({output.is_cut for output in expected}) == 2, "some are cut, some not"
    assert max(len(output.ids) for output in outputs) == 12


def test_ctranslate2_leaves_the_number_of_threads_to_torch(sample_tokenizer):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        CTranslate2Engine(Teacher("tiny", make_teacher_model(100), sample_tokenizer, ""), SEARCH)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_conversion_leaves_the_model_as_it_was(tmp_path):
    model = make_teacher_model(60)
    before = copy.deepcopy(model.state_dict())
    vocabulary_map = tmp_path / "map.txt"
    vocabulary_map.write_text("\t1 2\n7\t8 9\n")
    for quantization in (None, "int8"):
        folder = tmp_path / str(quantization)
        folder.mkdir()
        teacher_engines.convert_to_ctranslate2(model, str(folder), quantization, vocabulary_map)
        assert (folder / "vmap.txt").read_text() == vocabulary_map.read_text()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_forbidden_tokens_are_forbidden_in_both(sample_tokenizer):
    teacher = Teacher("tiny", MODELS["joint"](), sample_tokenizer, "")
    sources = [[*range(3, 3 + n), 1] for n in range(30, 1, -1)]
    most_used = max(CTranslate2Engine(teacher, SEARCH).translate(sources), key=lambda output: len(output.ids)).ids[0]
    teacher.model.generation_config.bad_words_ids = [[0], [most_used]]  # Marian's own models forbid <pad> like this
    teacher.model.generation_config.early_stopping = True
    outputs = CTranslate2Engine(teacher, SEARCH).translate(sources)
    assert not any(most_used in output.ids or 0 in output.ids for output in outputs)
    teacher.model.generation_config.renormalize_logits = True  # what CTranslate2 does
    expected = TransformersEngine(teacher, SEARCH).translate(sources)
    assert sum(one == other for one, other in zip(outputs, expected, strict=True)) >= 0.95 * len(sources)


def test_a_batch_is_translated_as_its_sentences_alone(sample_tokenizer):
    teacher = Teacher("tiny", make_teacher_model(100), sample_tokenizer, "")
    sources = [[*range(3, 3 + n), 1] for n in range(12, 1, -1)]
    for engine in (TransformersEngine, CTranslate2Engine):
        together = engine(teacher, SEARCH).translate(sources)
        alone = engine(teacher, SearchSettings(4, 1.0, 12, 1)).translate(sources)
        assert together == alone


def test_the_engine_is_chosen_or_its_absence_explained(sample_tokenizer, monkeypatch):
    teacher = Teacher("tiny", make_teacher_model(100), sample_tokenizer, "")
    assert choose_engine("auto", teacher) == "ctranslate2"
    assert choose_engine("transformers", teacher) == "transformers"
    with pytest.raises(ValueError, match="engine is 'marian'; it must be one of"):
        choose_engine("marian", teacher)

    other = BartForConditionalGeneration(BartConfig(vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1))
    bart = Teacher("bart", other, sample_tokenizer, "")
    assert choose_engine("auto", bart) == "transformers"
    with pytest.raises(EngineError, match="model types marian, t5, and bart is a bart: choose --engine transformers"):
        choose_engine("ctranslate2", bart)

    teacher.model.generation_config.no_repeat_ngram_size = 3
    assert choose_engine("auto", teacher) == "transformers"
    with pytest.raises(EngineError, match="not given no_repeat_ngram_size of the generation config of tiny"):
        choose_engine("ctranslate2", teacher)
    teacher.model.generation_config.no_repeat_ngram_size = None

    monkeypatch.setattr(teacher_engines.importlib.util, "find_spec", lambda name: None)
    assert choose_engine("auto", teacher) == "transformers"
    with pytest.raises(EngineError, match="pip install ctranslate2"):
        choose_engine("ctranslate2", teacher)


def test_settings_an_engine_has_not_are_refused(sample_tokenizer):
    teacher = Teacher("tiny", make_teacher_model(100), sample_tokenizer, "")
    with pytest.raises(ValueError, match="compute_type is int3; CTranslate2 on cpu has"):
        CTranslate2Engine(teacher, SEARCH, "int3")
    with pytest.raises(ValueError, match=r"compute_type is int8; .*--engine ctranslate2"):
        TransformersEngine(teacher, SEARCH, "int8")
    with pytest.raises(ValueError, match="max_target_length is 41, but tiny has 40 positions"):
        teacher.check_target_length(41)
    with pytest.raises(ValueError, match="num_beams is 0; it must be at least 1"):
        SearchSettings(0, 1.0, 5, 5)
