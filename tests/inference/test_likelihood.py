"""How likely answers are."""

from dataclasses import replace

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, Turn
from caldera.inference.batch_generator import BatchGenerator
from caldera.inference.likelihood import LikelihoodScorer, ScoredContinuation
from caldera.inference.sampling import SamplingParams
from caldera.model.assistant import LlavaBundle


def test_only_what_the_model_itself_would_say_is_greedy(assistant: LlavaBundle) -> None:
    """Its own answer is, beside a longer row too; with any one token changed it is not."""
    images = DecodedImages(assistant.processor)
    generator, weigher = BatchGenerator(assistant, images), LikelihoodScorer(assistant, images)
    prompt = generator.prompt(Conversation("c", (Turn("user", ("what is there?",)),)))
    said = generator.generate_ids(prompt, SamplingParams(max_new_tokens=5))
    assert len(said) == 5

    rows = [said, *([*said[:at], 7, *said[at + 1 :]] for at in range(5)), [7] * 11]
    weights = weigher.score(
        [ScoredContinuation(replace(prompt, ids=(*prompt.ids, *row)), len(row)) for row in rows]
    )

    assert 7 not in said
    assert [weight.greedy for weight in weights] == [True, *[False] * 6]
    assert all(weights[0].total > weight.total for weight in weights[1:])
