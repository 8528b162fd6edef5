"""Features of images and prompts: image tokens, hidden states and logits."""

import torch
from torch import Tensor

from caldera.inference.prompts import ProcessedImage, Prompt
from caldera.model.bundle import LlavaBundle
from caldera.model.llava import compute_logits, order_image_tokens


@torch.inference_mode()
def image_features(assistant: LlavaBundle, image: ProcessedImage) -> Tensor:
    """Return the vision tower's features of an image that are projected, (views, patches, vision width)."""
    model = assistant.model
    return model.patch_features(image.views.to(model.embedding_weight.device)).float().cpu()


@torch.inference_mode()
def image_embeddings(assistant: LlavaBundle, image: ProcessedImage) -> Tensor:
    """Return an image as the language model reads it, (image tokens, width)."""
    model = assistant.model
    features = model.patch_features(image.views.to(model.embedding_weight.device))
    projector = model.projector
    projected = projector(features.to(projector.layers[0].weight.dtype))
    return order_image_tokens(projected, [image.layout], projector.image_newline).float().cpu()


@torch.inference_mode()
def hidden_states(assistant: LlavaBundle, prompt: Prompt) -> Tensor:
    """Return the last hidden states of a prompt's tokens, (tokens, width)."""
    return _last_hidden_states(assistant, prompt).float().cpu()


@torch.inference_mode()
def prompt_logits(assistant: LlavaBundle, prompt: Prompt) -> Tensor:
    """Return the logits after each token of a prompt, (tokens, vocabulary)."""
    hidden = _last_hidden_states(assistant, prompt)
    return compute_logits(assistant.model.language, hidden).cpu()


def embed_prompt(assistant: LlavaBundle, prompt: Prompt) -> Tensor:
    """Return the language model's input for a prompt, (1, tokens, width)."""
    model = assistant.model
    device = model.embedding_weight.device
    ids = torch.tensor([prompt.ids], device=device)  # (1, tokens)
    side = assistant.processor.side
    pixels = torch.cat([torch.zeros(0, 3, side, side), *(image.views for image in prompt.images)])
    return model.embed(ids, pixels.to(device), [image.layout for image in prompt.images])


def _last_hidden_states(assistant: LlavaBundle, prompt: Prompt) -> Tensor:
    """Return the last hidden states in the model's own precision, (tokens, width)."""
    embedded = embed_prompt(assistant, prompt)
    output = assistant.model.language.base_model(inputs_embeds=embedded, use_cache=False)
    states: Tensor = output.last_hidden_state[0]
    return states
