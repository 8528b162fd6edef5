"""Log likelihoods of given answers."""

from dataclasses import replace

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, Turn
from caldera.inference.likelihood import LikelihoodScorer, ScoredContinuation
from caldera.inference.prompts import PromptBuilder
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle
from tests.engine_answers import generate_ids


def test_only_the_models_own_answer_is_greedy(assistant: LlavaBundle) -> None:
    """Also in a batch with a longer row; with any token changed it is not, and it is less likely."""
    scorer = LikelihoodScorer(assistant, DecodedImages(assistant.processor))
    question = Conversation("c", (Turn("user", ("what is there?",)),))
    [answer] = generate_ids(assistant, [question], sampling=SamplingParams(max_new_tokens=5))
    assert len(answer) == 5
    assert 7 not in answer

    changed = [(*answer[:i], 7, *answer[i + 1 :]) for i in range(5)]
    prompt = PromptBuilder(assistant).from_files(question)
    likelihoods = scorer.score(
        [
            ScoredContinuation(replace(prompt, ids=(*prompt.ids, *row)), len(row))
            for row in (answer, *changed, (7,) * 11)
        ]
    )

    assert [likelihood.greedy for likelihood in likelihoods] == [True, *[False] * 6]
    assert all(likelihoods[0].sum > likelihood.sum for likelihood in likelihoods[1:])
