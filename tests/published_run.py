"""A tiny model as a user would share it: trained in a run's folder on data from the Hub, and evaluated."""

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from caldera.conversation import read_conversations, write_conversations
from caldera.datasets.origins import HubOrigin, write_origins
from caldera.devices import DeviceConfig
from caldera.evaluation.answerers.answerer import AnswerConfig
from caldera.evaluation.answerers.local_model import load_answerer
from caldera.evaluation.runs.results import BenchmarkInfo
from caldera.evaluation.runs.run import evaluate
from caldera.formats.model_folder import save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.training.job import TrainingData
from tests.evaluation.questions import questions
from tests.training.jobs import STAGES, dialogues, make_job

ORIGIN = HubOrigin(dataset="atelier/talks", revision="c" * 40, file="talks.json")


def train_and_evaluate(assistant: LlavaBundle, folder: Path) -> Path:
    """Write a run of stage 2 with an evaluation of its model; return the run's folder."""
    photos, run, data = folder / "photos", folder / "run", folder / "talks.json"
    photos.mkdir()
    for number in range(7):
        Image.new("RGB", (5 + number, 19 - number), (30 * number, 9, 99)).save(
            photos / f"{number}.png"
        )
    write_conversations(data, dialogues(40))
    write_origins(data, [ORIGIN])
    training_data = TrainingData(conversations=read_conversations(data), images=photos, file=data)
    make_job(assistant, photos, run, STAGES["finetune"], data=training_data).run()
    model = run / "model"
    config, compute = AnswerConfig(), DeviceConfig(torch.device("cpu"), torch.float32)
    evaluate(
        questions(20),
        load_answerer(model, config=config, compute=compute),
        folder=photos,
        out=run / "evaluation",
        info=BenchmarkInfo(title="Colors of /home/me/photos", measures="What is seen.", chance={}),
    )
    return run


def save_sharded(folder: Path, assistant: LlavaBundle) -> Path:
    """Write a model folder whose weights are in three files, and return it."""
    save_model_folder(folder, assistant)
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    weight_map: dict[str, str] = {}
    for number in range(3):
        file = f"model-0000{number + 1}-of-00003.safetensors"
        part = {name: weights[name] for name in names[number::3]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
