"""Processor of LLaVA-OneVision folders, written and read without torchvision."""

from typing import Any

import transformers
from transformers import BaseImageProcessor, PreTrainedTokenizerFast

from caldera.formats.tokenizer import IMAGE_TOKEN

VIDEO_TOKEN = "<video>"
"""Placeholder of videos in LLaVA-OneVision's tokenizers."""


class LlavaOnevisionProcessor(transformers.LlavaOnevisionProcessor):
    """Transformers' processor of LLaVA-OneVision without its video processor, which only torchvision provides.

    The folders it writes have the settings of one: transformers loads them as its own where torchvision is installed.
    """

    def __init__(  # noqa: PLR0913 - transformers' own parameters
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = IMAGE_TOKEN,
        video_token: str = VIDEO_TOKEN,
        vision_aspect_ratio: str = "anyres_max_9",
        **_: Any,  # noqa: ANN401 - settings of the video processor, which are not used
    ) -> None:
        """Pass everything to transformers' class, whose attributes are those in this signature."""
        super().__init__(  # type: ignore[no-untyped-call] # transformers'
            image_processor,
            tokenizer,
            None,
            num_image_tokens,
            vision_feature_select_strategy,
            chat_template,
            image_token,
            video_token,
            vision_aspect_ratio,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, those of a video processor included."""
        names = ("size", "image_mean", "image_std", "resample", "rescale_factor")
        shared = self.image_processor.to_dict()
        video = {name: shared[name] for name in names}
        settings: dict[str, Any] = super().to_dict()
        return settings | {
            "video_processor": {"video_processor_type": "LlavaOnevisionVideoProcessor", **video}
        }
