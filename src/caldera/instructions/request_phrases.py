"""Questions that ask for a caption, a detailed description, a short answer or a letter."""

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
"""Requests for a caption, for stage 1 (eleven, as in the paper; the wordings are this project's)."""

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
"""Requests for a detailed description (sixteen, as in the paper; the wordings are this project's)."""

PHOTO_CAPTION_REQUESTS, PHOTO_DETAIL_REQUESTS = (
    tuple(text.replace("Summarise", "Summarize").replace("Analyse", "Analyze") for text in requests)
    for requests in (CAPTION_REQUESTS, DETAIL_REQUESTS)
)
"""The same in American spelling, for photos; records of drawn scenes keep their words."""

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""LLaVA-1.5's request for a short answer (arXiv 2310.03744, table 7)."""

LETTER_PROMPT = "Answer with the option's letter from the given choices directly."
"""LLaVA-1.5's request for a choice (arXiv 2310.03744, table 7)."""
