"""Models and towers by their names on the Hub: loaded, imported and joined, with their commits recorded."""

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

import caldera
from caldera.errors import ModelFormatError
from caldera.files.hub import hub_source
from caldera.files.hub_errors import HubError
from caldera.formats.assemble import assemble
from caldera.formats.hub_models import RELEASED_TEMPLATES, local_folders
from caldera.formats.model_folder import save_model_folder
from caldera.formats.model_paths import find_model
from caldera.formats.open_model import load_model, open_model
from caldera.formats.weight_files import read_folder
from caldera.model.bundle import LlavaBundle
from caldera.recipes.towers import resolve_tower, resolve_towers
from caldera.templates.registry import TEMPLATES
from tests.formats.conftest import Write, run_import, write_llava_hf
from tests.hub_server import HubServer


def to_pickle(folder: Path, out: Path) -> Path:
    """Copy a folder with its weights as a pickle of torch, as many are published."""
    shutil.copytree(folder, out)
    torch.save(load_file(out / "model.safetensors"), out / "pytorch_model.bin")
    (out / "model.safetensors").unlink()
    return out


def test_a_name_is_loaded_at_its_revision(
    hub: HubServer, tmp_path: Path, assistant: LlavaBundle
) -> None:
    """`caldera.load` takes a name and a revision, and records the commit; a Path of the same text is a path."""
    save_model_folder(tmp_path / "model", assistant)
    repo = hub.add("org/model", tmp_path / "model")
    first = repo.refs["main"]
    repo.commit({"README.md": b"emptied"})
    assert load_model(f"org/model@{first[:9]}").card.sources["source"] == f"org/model@{first}"
    with caldera.load(f"org/model@{first[:9]}", dtype="float32") as model:
        assert model.chat("what?", max_new_tokens=2) is not None
    with pytest.raises(
        HubError, match=r"org/model is no model that caldera reads: it has no config"
    ):
        caldera.load("org/model")
    hub.requests.clear()
    with pytest.raises(ModelFormatError, match=r"does not exist; .*give hf://org/model"):
        caldera.load(Path("org/model"))
    with pytest.raises(ModelFormatError, match=r"does not exist"):
        caldera.load("./org/model")
    assert hub.requests == []


def test_requests_name_the_version(hub: HubServer) -> None:
    """The Hub and its CDN can tell which caldera asks."""
    hub.add("org/model", {"config.json": b"{}", "model.safetensors": bytes(10)})
    local_folders("org/model")
    agents = {request.headers["user-agent"].split(";")[0] for request in hub.requests}
    assert agents == {f"caldera/{caldera.__version__}"}


def test_what_cannot_be_used_is_reported_before_its_weights(
    hub: HubServer, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, vision_folder: Path
) -> None:
    """An unknown template, a tower alone: the error has the user's name and the command, and no weight is asked for."""
    hub.add("org/unknown", write_llava_hf(tmp_path / "folder", tokenizer))
    hub.add("openai/tiny-clip", vision_folder)
    command = r"caldera import org/unknown --template NAME .*likely, .*: vicuna_v1; docs/templates"
    for name, message in (
        ("org/unknown", command),
        ("openai/tiny-clip", "^openai/tiny-clip is a vision tower .*--vision openai/tiny-clip "),
    ):
        with pytest.raises(ModelFormatError, match=message) as caught:
            find_model(name)
        assert "snapshots" not in str(caught.value)
    assert not [request for request in hub.requests if "model.safetensors" in request.path]


@pytest.mark.parametrize("silenced", [False, True])
def test_a_download_in_python_is_seen(
    silenced: bool,
    hub: HubServer,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a log, size, free disk and progress are on stderr, unless the Hub's variable silences them."""
    bars = sys.modules["huggingface_hub.utils.tqdm"]
    monkeypatch.setattr(bars, "HF_HUB_DISABLE_PROGRESS_BARS", silenced)
    monkeypatch.setattr(bars, "progress_bar_states", {})
    logger = logging.getLogger("caldera")
    caplog.set_level(logging.WARNING, "caldera")
    hub.add("org/model", {"config.json": b"{}", "model.safetensors": bytes(3_000_000)})
    local_folders("org/model")
    printed = capsys.readouterr().err
    assert ("2 files to download, 3.0 MB; " in printed) is not silenced
    assert ("MB of org/model: 3 of 4" in printed) is not silenced
    assert logger.level == logging.WARNING
    assert not logger.handlers
    assert logger.propagate
    local_folders("org/model")
    assert capsys.readouterr().err == ""


def test_a_release_of_llava_hf_has_its_template_by_its_name(
    hub: HubServer,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The chat template of the files, which lacks the system text, is not used; under another name it is an error."""
    caplog.set_level(logging.INFO, "caldera.formats.open_model")
    folder = write_llava_hf(tmp_path / "hf", tokenizer)
    hub.add("llava-hf/llava-1.5-7b-hf", folder)
    hub.add("someone/llava-1.5-7b-hf", folder)
    card = open_model("llava-hf/llava-1.5-7b-hf")[0].card
    assert card.template == "vicuna_v1"
    [note] = [text for text in caplog.messages if "padded" in text]
    assert note.startswith("llava-hf/llava-1.5-7b-hf: ")
    assert "caldera import llava-hf/llava-1.5-7b-hf --template vicuna_v1 --aspect pad" in note
    message = r"choose one: caldera import someone/llava-1.5-7b-hf --template NAME --out FOLDER"
    with pytest.raises(ModelFormatError, match=message):
        open_model("someone/llava-1.5-7b-hf")
    assert not set(RELEASED_TEMPLATES.values()) - TEMPLATES.keys()


def test_a_release_of_llavas_own_code_opens_directly(
    hub: HubServer, tmp_path: Path, write_original: Write, vision_folder: Path
) -> None:
    """Its vision tower is downloaded too; what is opened equals what is imported from folders."""
    original = write_original()
    hub.add("liuhaotian/llava-v1.5-7b", original)
    hub.add("someone/tiny-clip", to_pickle(vision_folder, tmp_path / "clip"))
    opened = load_model("liuhaotian/llava-v1.5-7b")
    assert opened.card.template == "vicuna_v1_original_4_31"
    run_import(
        tmp_path / "imported",
        source=original,
        vision=vision_folder,
        template="vicuna_v1_original_4_31",
    )
    imported = load_model(tmp_path / "imported")
    weights = imported.model.state_dict()
    assert weights.keys() == opened.model.state_dict().keys()
    for name, weight in opened.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_a_name_in_a_local_folder_is_not_sent_to_the_hub(
    hub: HubServer, tmp_path: Path, write_original: Write
) -> None:
    """The tower that a config names is only fetched if the model itself was named by the user."""
    with pytest.raises(
        caldera.CalderaError, match="give --vision, the name of that tower on the Hub"
    ):
        run_import(tmp_path / "out", source=write_original())
    assert hub.requests == []


def test_other_repositories_of_llavas_own_code_name_the_import(
    hub: HubServer, write_original: Write
) -> None:
    """Their template is not known, and a wrong one gives poor answers."""
    hub.add("someone/finetuned", write_original())
    message = (
        r"convert it: caldera import someone/finetuned --template vicuna_v1 --out FOLDER \(the"
    )
    with pytest.raises(ModelFormatError, match=message):
        open_model("someone/finetuned")


def test_code_in_a_repository_is_rejected(
    hub: HubServer, tmp_path: Path, assistant: LlavaBundle
) -> None:
    """It is not downloaded, and a config that would run it is an error."""
    save_model_folder(tmp_path / "model", assistant)
    config = json.loads((tmp_path / "model/config.json").read_bytes())
    config["auto_map"] = {"AutoModel": "modeling.Evil"}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    (tmp_path / "model/modeling.py").write_text("raise SystemExit")
    hub.add("org/model", tmp_path / "model")
    with pytest.raises(ModelFormatError, match=r"has 'auto_map', which would run code"):
        open_model("org/model")
    assert not any(request.path.endswith(".py") for request in hub.requests)


def test_towers_are_joined_and_recorded(
    hub: HubServer, tmp_path: Path, vision_folder: Path, language_folder: Path
) -> None:
    """Pickles and safetensors give the same model; caldera.json has names and commits."""
    vision = hub.add("openai/tiny-clip", to_pickle(vision_folder, tmp_path / "clip"))
    hub.add("lmsys/tiny-vicuna", to_pickle(language_folder, tmp_path / "vicuna"))
    names = "openai/tiny-clip@main", "lmsys/tiny-vicuna"
    folders = resolve_towers(*names, work=tmp_path / "run" / "towers")
    joined, expected = assemble(*folders, seed=3), assemble(vision_folder, language_folder, seed=3)
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(weight, joined.model.state_dict()[name]), name
    assert joined.card.sources == {
        "vision": f"openai/tiny-clip@{vision.refs['main']}",
        "language": hub_source(folders[1]),
    }
    assert expected.card.sources == {"vision": "vision", "language": "language"}
    save_model_folder(tmp_path / "saved", joined)
    stored = json.loads((tmp_path / "saved" / "caldera.json").read_bytes())
    assert stored["sources"] == joined.card.sources


def test_a_run_takes_the_same_commits_again(
    hub: HubServer, tmp_path: Path, vision_folder: Path
) -> None:
    """A branch that has moved changes nothing in a run that has begun, and no request is made."""
    repo = hub.add("openai/tiny-clip", vision_folder)
    first = resolve_tower("openai/tiny-clip", tmp_path / "run")
    repo.commit({**repo.commits[repo.refs["main"]], "preprocessor_config.json": b"{}"})
    hub.requests.clear()
    assert resolve_tower("openai/tiny-clip", tmp_path / "run") == first
    assert hub.requests == []
    assert resolve_tower("openai/tiny-clip", tmp_path / "another") != first


def test_imports_record_their_sources(
    hub: HubServer, tmp_path: Path, vision_folder: Path, language_folder: Path
) -> None:
    """The roles are those of the digests; a local folder has its own name, without its path."""
    hub.add("openai/tiny-clip", vision_folder)
    [vision, language] = local_folders("openai/tiny-clip", str(language_folder))
    run_import(tmp_path / "out", vision=vision, language=language)
    card = load_model(tmp_path / "out").card
    assert card.sources == {"vision": hub_source(vision), "language": "language"}
    assert card.source_digests.keys() >= card.sources.keys()


def test_a_cache_with_shared_blobs_is_read(
    hub: HubServer, tmp_path: Path, vision_folder: Path
) -> None:
    """`huggingface_hub` 2 keeps files of Xet once for all repositories: a blob is a link into its store."""
    hub.add("openai/tiny-clip", vision_folder)
    [folder] = local_folders("openai/tiny-clip")
    blob = (folder / "model.safetensors").resolve()
    store = tmp_path / "hub" / "blobs" / "ab" / ("ab" * 32)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(Path("../../blobs/ab") / store.name)
    assert resolve_tower("openai/tiny-clip", tmp_path / "run") == folder
    assert read_folder(folder).weights.keys() == read_folder(vision_folder).weights.keys()
    (tmp_path / "elsewhere").write_bytes(store.read_bytes())
    blob.unlink()
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFormatError, match="outside the folder; rejected"):
        read_folder(folder)
