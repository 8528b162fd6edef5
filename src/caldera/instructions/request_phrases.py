"""The instructions that ask for a caption or for a detailed description, worded in several ways."""

CAPTION_REQUESTS: tuple[str, ...] = (
    "Describe the image in one sentence.",
    "What does this picture show?",
    "Give a short caption for this image.",
    "Say briefly what is in the picture.",
    "Summarise the image in a few words.",
    "Write a caption.",
    "What is this a picture of?",
    "Tell me in short what you see.",
    "Provide a one-sentence caption for the provided image.",
    "In a sentence, what is shown here?",
    "Sum up this picture.",
)
"""Questions of stage 1 (eleven, as in the paper; the wordings are this project's)."""

DETAIL_REQUESTS: tuple[str, ...] = (
    "Describe the image in detail.",
    "Tell me everything you see in this picture.",
    "What can be seen here, and where? Be thorough.",
    "Give a detailed account of the picture.",
    "Walk me through the scene.",
    "Explain at length what the image shows.",
    "Describe the scene as if I could not see it.",
    "List what is in the picture and where it stands.",
    "Please write a full description of this image.",
    "Go through the details of this picture.",
    "What is there to see? Leave nothing out.",
    "Paint this picture in words.",
    "Look closely and describe what you find.",
    "Give me a complete description of the scene.",
    "Describe what is shown, with the places of things.",
    "Analyse the picture in detail.",
)
"""Questions for detailed descriptions (sixteen, as in the paper; the wordings are this project's)."""


SHORT_ANSWER = "Answer the question using a single word or phrase."
"""LLaVA-1.5's sentence that asks for the short form (arXiv 2310.03744, table 7)."""


LETTER_PROMPT = "Answer with the option's letter from the given choices directly."
"""What table 7 of LLaVA-1.5's paper asks where there are choices."""
