"""Items in, an assistant's answers out: greedy, in batches of like length."""

from collections.abc import Sequence
from pathlib import Path

from caldera.evaluation.benchmark import Item
from caldera.inference.generate import BatchGenerator
from caldera.inference.sampling import SamplingParams
from caldera.progress import Progress


def ask(
    generator: BatchGenerator,
    items: Sequence[Item],
    *,
    folder: Path,
    max_new_tokens: int,
    progress: Progress,
    name: str,
    batch_size: int = 64,
) -> dict[str, str]:
    """Ask every item once and return the answers by item id.

    Args:
        generator: Answers.
        items: What to ask.
        folder: Folder that image paths start from.
        max_new_tokens: Longest answer.
        progress: Follows the work.
        name: What the progress is called.
        batch_size: Items that are answered together.

    Raises:
        CalderaError: An image cannot be used, or an item is too long for the model.
    """
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    prompts = {item.id: generator.prompt(item.conversation, folder) for item in items}
    order = sorted(prompts, key=lambda name: len(prompts[name].ids))
    answers: dict[str, str] = {}
    with progress.task(name, len(items)) as tick:
        for at in range(0, len(order), batch_size):
            names = order[at : at + batch_size]
            replies = generator.generate([prompts[name] for name in names], sampling)
            answers |= dict(zip(names, replies, strict=True))
            tick(len(names))
    return answers
