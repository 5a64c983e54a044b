"""Models written in the formats of the engines that are compared."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel

from lvnar_hf.engines.onnx_export import export_onnx
from lvnar_hf.engines.onnx_search import export_cells, export_rescorer
from lvnar_hf.engines.shortlist import Shortlist
from training.distillation.ctranslate2_model import convert_to_ctranslate2
from training.speed.specs import RESCORER_FOLDER, SystemSpec


def convert(
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


def export(
    model: PreTrainedModel,
    folder: Path,
    specs: Sequence[SystemSpec],
    shortlist: Shortlist | None,
    rescorer: PreTrainedModel | None = None,
) -> None:
    """Write the model's ONNX graphs, if a system needs them, and what stands beside them; and those of a rescorer."""
    needed = [dict(spec.search) for spec in specs if spec.folder == str(folder)]
    if any("rescorer" in search for search in needed) and rescorer is not None:
        export_rescorer(rescorer, folder / RESCORER_FOLDER)
        rescorer.config.save_pretrained(folder / RESCORER_FOLDER)
    if any(needed):
        export_cells(model, folder)
    if needed:
        export_onnx(model, folder)
        if shortlist is not None:
            shortlist.save(folder)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
