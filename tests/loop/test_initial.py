"""Weights to begin with that other models lend: layers for any languages, embeddings of a teacher."""

import pytest
import torch
from conftest import TINY_SIZES, make_batch, make_model, tiny_config
from transformers import MarianMTModel

from training import teacher as teacher_command
from training import train
from training.loop.initial import copy_embeddings, copy_layers
from training.sections import OptimizationArguments, TeacherArguments

VOCABULARIES = (50, 40)
EMBEDDINGS = ("source_embedding.weight", "target_embedding.weight")


def save(model, folder) -> str:
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def student():
    """Of two vocabularies."""
    source, target = VOCABULARIES
    return make_model(tiny_config(vocab_size=source, target_vocab_size=target), seed=1)


def make_teacher(source: int = VOCABULARIES[0], target: int = VOCABULARIES[1], seed: int = 2) -> MarianMTModel:
    torch.manual_seed(seed)
    sizes = TeacherArguments(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_encoder_layers=2, num_decoder_layers=1
    )
    return MarianMTModel(sizes.to_config(source, target)).eval()


def test_layers_come_from_a_model_for_other_languages(student, tmp_path):
    other = make_model(tiny_config(vocab_size=60), seed=3)  # one vocabulary, of another size
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    copy_layers(student, save(other, tmp_path))
    theirs, after = other.state_dict(), student.state_dict()
    assert all(torch.equal(after[name], theirs[name]) for name in theirs if name not in EMBEDDINGS)
    assert all(torch.equal(after[name], before[name]) for name in EMBEDDINGS)
    assert not torch.equal(before["decoder.latent_proj.weight"], after["decoder.latent_proj.weight"])


def test_layers_of_another_size_or_kind_are_refused(student, tmp_path):
    for name, other in (
        ("wider", make_model(tiny_config(intermediate_size=64))),
        ("ctc", make_model(tiny_config(alignment="ctc"))),
        ("latents", make_model(tiny_config(num_posterior_decoder_layers=1, latent_dim=3))),
        ("marian", make_teacher()),
    ):
        before = {name: weight.clone() for name, weight in student.state_dict().items()}
        with pytest.raises(ValueError, match=r"other layers than the recipe asks for: \w+.*, and \d+ more weights"):
            copy_layers(student, save(other, tmp_path / name))
        assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())


def test_a_deeper_model_begins_as_the_other_and_a_shallower_with_its_first_layers(tmp_path):
    """With its embeddings too, it is the other; the other way round, what was added is left out."""
    sizes = {"num_prior_layers": 2, "num_decoder_layers": 1, "num_posterior_decoder_layers": 1}
    shallow = make_model(tiny_config(alignment="ctc", **sizes), seed=1)
    sizes = {"num_prior_layers": 4, "num_decoder_layers": 3, "num_posterior_decoder_layers": 2}
    deep = make_model(tiny_config(alignment="ctc", **sizes), seed=2)
    folder = save(shallow, tmp_path / "shallow")
    copy_embeddings(deep, folder, copy_layers(deep, folder))
    batch = make_batch(shallow.config, [(5, 4), (9, 7)])
    with torch.no_grad():
        logits, expected = (one(**batch, generator=torch.manual_seed(1)).logits for one in (deep, shallow))
    assert torch.allclose(logits, expected, atol=1e-5)
    deep.prior.encoder.layers[3].feed_forward[3].bias.data += 1
    deep.prior.encoder.layers[1].feed_forward[3].bias.data += 1
    known = copy_layers(shallow, save(deep, tmp_path / "deep")).state_dict()
    assert all(torch.allclose(weight, known[name], atol=1e-6) for name, weight in shallow.state_dict().items())


def test_a_teacher_takes_the_layers_of_another(tmp_path):
    teacher, other = make_teacher(), make_teacher(70, 70, seed=4)
    embeddings = teacher.get_encoder().get_input_embeddings().weight.clone()
    copy_layers(teacher, save(other, tmp_path))
    for part in ("get_encoder", "get_decoder"):
        ours, theirs = (getattr(one, part)().layers[0].state_dict() for one in (teacher, other))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(teacher.get_encoder().get_input_embeddings().weight, embeddings)


@pytest.mark.parametrize("with_layers", [False, True])
def test_embeddings_are_the_teachers_at_the_scale_that_the_layers_know(student, tmp_path, with_layers):
    teacher = make_teacher()
    known = make_model(tiny_config(vocab_size=60), seed=3) if with_layers else None
    if known is not None:
        known.source_embedding.weight.data = 3 * known.source_embedding.weight.data + 1
    of_layers = student if known is None else known
    likes = [getattr(of_layers, f"{side}_embedding", of_layers.source_embedding) for side in ("source", "target")]
    likes = [like.weight.detach().clone() for like in likes]
    copy_embeddings(student, save(teacher, tmp_path), known)
    for side, part, like in zip(("source", "target"), ("get_encoder", "get_decoder"), likes, strict=True):
        ours = getattr(student, f"{side}_embedding").weight.detach()
        theirs = getattr(teacher, part)().get_input_embeddings().weight.detach()
        assert torch.equal(ours[:3], like[:3])  # padding, end of sentence, unknown
        words, wanted = ours[3:] - like.mean(0), theirs[3:] - theirs.mean(0)
        cosines = torch.nn.functional.cosine_similarity(words, wanted, dim=-1)
        assert cosines.min() > 0.9999
        ratio = (like - like.mean(0)).norm(dim=-1).mean() / (theirs - theirs.mean(0)).norm(dim=-1).mean()
        assert torch.allclose(words.norm(dim=-1), ratio * wanted.norm(dim=-1), rtol=1e-4)


def test_embeddings_of_another_vocabulary_are_refused(student, tmp_path):
    with pytest.raises(ValueError, match=r"target in .* are \(45, 32\), and the model's \(40, 32\)"):
        copy_embeddings(student, save(make_teacher(target=45), tmp_path))
    with pytest.raises(ValueError, match="has two vocabularies, and the model one"):
        copy_embeddings(make_model(tiny_config(vocab_size=50)), save(make_teacher(50, 50), tmp_path / "two"))


def test_the_recipe_takes_a_whole_model_or_parts_of_others():
    with pytest.raises(ValueError, match="not both"):
        OptimizationArguments(initial_model="a", initial_layers="b")
    arguments = OptimizationArguments(initial_layers="b", initial_embeddings="c")
    arguments.forget_initial_weights()
    assert arguments == OptimizationArguments()


def test_the_commands_begin_with_what_the_recipe_names(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("training.loop.run.run_training", lambda *a: made.append(a[-1](*VOCABULARIES)) or {})
    other, teacher = make_model(tiny_config(), seed=3), make_teacher()
    layers, embeddings = save(other, tmp_path / "layers"), save(teacher, tmp_path / "teacher")
    sizes = [f"--{name}={value}" for name, value in TINY_SIZES.items()]
    train.main([*sizes, "--initial_layers", layers, "--initial_embeddings", embeddings])
    begun, expected = made.pop(), make_model(tiny_config(vocab_size=50, target_vocab_size=40), seed=5)
    copy_embeddings(expected, embeddings, copy_layers(expected, layers))
    assert all(torch.equal(weight, expected.state_dict()[name]) for name, weight in begun.state_dict().items())
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_encoder_layers": 2}
    sizes = [f"--{name}={value}" for name, value in {**sizes, "num_decoder_layers": 1}.items()]
    teacher_command.main([*sizes, "--initial_layers", embeddings])
    ours, theirs = (one.get_decoder().layers[0].state_dict() for one in (made.pop(), teacher))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ValueError, match="initial_embeddings is for the student"):
        teacher_command.main(["--initial_embeddings", embeddings])
