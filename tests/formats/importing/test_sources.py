"""Configs, vision towers, tokenizers and tiles of source folders are read, or rejected by name."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from caldera.errors import UsageError
from caldera.formats.model_folder import load_model_folder
from tests.formats.conftest import (
    WORDS,
    Write,
    assert_rejected,
    run_import,
    tower_inside,
)


def test_a_chat_template_is_neither_run_nor_copied(tmp_path: Path, llava_hf: Path) -> None:
    """The program in its chat template is in no file of the new folder."""
    assert any("cycler" in file.read_text() for file in llava_hf.glob("*.jinja"))
    run_import(tmp_path / "out", source=llava_hf)
    contents = [file.read_bytes() for file in (tmp_path / "out").iterdir()]
    assert not any(b"cycler" in content for content in contents)


def test_the_fast_tokenizer_gives_sentencepiece_ids(
    tmp_path: Path, write_original: Write, clip_folder: Path, words_folder: Path
) -> None:
    """The ids of the new tokenizer are SentencePiece's own, after the start token."""
    import sentencepiece

    run_import(tmp_path / "out", source=write_original(), vision=clip_folder)
    original = sentencepiece.SentencePieceProcessor(
        model_file=str(words_folder / "tokenizer.model")
    )
    tokenizer = load_model_folder(tmp_path / "out").tokenizer
    for text in ("USER: what is there? ASSISTANT: a dog", "the user's\n\ncat é 12", "\na"):
        assert tokenizer(text)["input_ids"] == [1, *original.encode(text)]
        assert tokenizer.decode(original.encode(text)) == text


@pytest.mark.parametrize("trained", [True, False])
def test_a_folders_own_tower_is_used_only_if_it_was_trained(
    tmp_path: Path, write_original: Write, clip_folder: Path, trained: bool
) -> None:
    """With unfreeze_mm_vision_tower the tower is the folder's, else that of --vision; a note names it."""
    inside = tower_inside(clip_folder, factor=3)
    folder = write_original(inside, unfreeze_mm_vision_tower=trained)

    report = run_import(tmp_path / "out", source=folder, vision=clip_folder)

    name = "vision_tower.vision_model.embeddings.class_embedding"
    written = load_file(tmp_path / "out" / "model.safetensors")[name]
    own = load_file(clip_folder / "model.safetensors")[name.removeprefix("vision_tower.")]
    assert torch.equal(written, own * (3 if trained else 1))
    assert any(("own, which were" if trained else "are not used") in note for note in report.notes)
    with pytest.raises(UsageError, match="give --vision"):
        run_import(tmp_path / "other", source=folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava_mpt"}, "model_type 'llava_mpt'.* cannot run its MPT"),
        ({"model_type": "llava_gemma"}, "'llava_gemma', which is not supported"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu'"),
        ({"mm_projector_type": "identity"}, "mm_projector_type 'identity'"),
        ({"s2": True}, "has s2 True"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"image_aspect_ratio": "highres"}, "image_aspect_ratio 'highres'"),
        ({"image_aspect_ratio": "anyres"}, "mm_patch_merge_type 'flat'; only spatial_unpad"),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer None"),
        ({"mm_hidden_size": None, "text_config": {}}, "layout .text_config."),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "would run code"),
        (
            {"model_args": {"checkpoint_path": "evil.pth"}},
            "'checkpoint_path', which would run code",
        ),
        (
            {"architecture": "hf-hub:evil/model"},
            "architecture 'hf-hub:evil/model', a model in another",
        ),
        ({"hidden_size": -12}, "has hidden_size -12; sizes are whole numbers from 1"),
        ({"num_hidden_layers": 10**9}, "has num_hidden_layers 1000000000"),
        ({"n_layer": 10**9}, "has n_layer 1000000000; sizes are whole numbers"),
        ({"num_local_experts": 10**9}, "has num_local_experts 1000000000"),
        ({"vocab_size": 1e30}, "has vocab_size 1e[+]30"),
        ({"rope_theta": float("nan")}, "has rope_theta nan, which is not a finite number"),
        (
            {"intermediate_size": 23},
            r"mlp.gate_proj.weight .* shape \(22, 12\); it needs \(23, 12\)",
        ),
        ({"num_attention_heads": 5}, "num_attention_heads|heads"),
        ({"num_hidden_layers": 1}, r"unexpected \['model.layers.1."),
        ({"num_hidden_layers": 3}, r"missing \['model.layers.2."),
        ({"tie_word_embeddings": True}, "differs from them"),
        (
            {"vocab_size": WORDS + 3},
            rf"has shape \({WORDS}, 12\); the config needs {WORDS + 3} rows",
        ),
        (
            {"mm_vision_tower": "openai/clip-vit-large-patch14-336"},
            "is not openai/clip-vit-large-patch14-336: it differs in hidden_size",
        ),
    ],
)
def test_an_unsupported_config_is_rejected(
    tmp_path: Path,
    write_original: Write,
    clip_folder: Path,
    changes: dict[str, object],
    message: str,
) -> None:
    """One line names the setting, or the weight that does not fit, and nothing is written (faults E2, E3)."""
    folder = write_original(**changes)
    assert_rejected(tmp_path, message, source=folder, vision=clip_folder)


def test_llava_next_is_imported(tmp_path: Path, llava_next: Path) -> None:
    """Grids are (height, width) in llava-hf and (width, height) in caldera; the newline embedding is imported."""
    run_import(tmp_path / "out", source=llava_next)
    metadata = load_model_folder(tmp_path / "out").card
    assert str(metadata.image_aspect) == "anyres"
    assert metadata.model_dump()["pinpoints"] == ((12, 6), (6, 18))
    original = load_file(llava_next / "model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["image_newline"], original["image_newline"])


def test_an_original_with_tiles_is_imported(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """Grids keep their order, (width, height), and the newline embedding is imported."""
    newline = torch.arange(12).half()
    folder = write_original(
        {"model.image_newline": newline},
        image_aspect_ratio="anyres",
        mm_patch_merge_type="spatial_unpad",
        image_grid_pinpoints=[[12, 6], [6, 18]],
    )
    run_import(tmp_path / "out", source=folder, vision=clip_folder)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["image_newline"], newline)
    assert load_model_folder(tmp_path / "out").card.model_dump()["pinpoints"] == ((12, 6), (6, 18))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_grid_pinpoints": [[12, 7]]}, r"\(12, 7\) does not divide into tiles of 6 x 6"),
        ({"image_grid_pinpoints": [[66, 60]]}, r"\(66, 60\) has 110 tiles, over the limit of 100"),
        ({"mm_vision_select_feature": "cls_patch"}, "config.json: .*select must be 'patch'"),
        ({"mm_vision_select_layer": 9}, "has no hidden state 9; it has 0 to 3"),
    ],
)
def test_impossible_tiles_are_rejected(
    tmp_path: Path,
    write_original: Write,
    clip_folder: Path,
    changes: dict[str, object],
    message: str,
) -> None:
    """The message names grids that do not divide into the tower's tiles, or that would take too much memory."""
    tiled = {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[12, 6], [6, 18]],
    }
    newline = {"model.image_newline": torch.arange(12).half()}
    folder = write_original(newline, **{**tiled, **changes})
    assert_rejected(tmp_path, message, source=folder, vision=clip_folder)


def test_class_tokens_of_tiles_are_rejected(tmp_path: Path, llava_next: Path) -> None:
    """A llava-hf folder that keeps every tile's class token is rejected; the message names its config."""
    file = llava_next / "config.json"
    config = json.loads(file.read_text()) | {"vision_feature_select_strategy": "full"}
    file.write_text(json.dumps(config))
    assert_rejected(
        tmp_path, f"^{file} has vision_feature_select_strategy 'full'", source=llava_next
    )


def test_tiles_cannot_be_requested_or_removed(
    tmp_path: Path, llava_next: Path, llava_hf: Path, clip_folder: Path, vicuna_folder: Path
) -> None:
    """--aspect chooses between square and pad only, as weights for tiles exist or not."""
    out = tmp_path / "out"
    for aspect, settings in (
        ("pad", {"source": llava_next}),
        ("anyres", {"source": llava_hf}),
        ("anyres", {"vision": clip_folder, "language": vicuna_folder}),
    ):
        with pytest.raises(UsageError, match="--aspect can only choose between square and pad"):
            run_import(out, aspect=aspect, **settings)
    assert not out.exists()
    run_import(out, source=llava_next, aspect="anyres")


def test_a_broken_tokenizer_is_rejected(
    tmp_path: Path, write_original: Write, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken SentencePiece model and a missing package get one line each."""
    folder = write_original()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UsageError, match=r"tokenizer\.model needs sentencepiece: pip"):
        run_import(tmp_path / "out", source=folder, vision=clip_folder)
    monkeypatch.undo()
    (folder / "tokenizer.model").write_bytes(b"hello" * 9)
    assert_rejected(tmp_path, "is not a SentencePiece model", source=folder, vision=clip_folder)


def test_a_model_with_fewer_rows_than_tokens_is_rejected(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """The message names a tokenizer with more tokens than the tables have rows."""
    short = {name: torch.zeros(299, 12) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    folder = write_original(short, vocab_size=299)
    message = f"has {WORDS} tokens, its model only 299 rows"
    assert_rejected(tmp_path, message, source=folder, vision=clip_folder)
