"""An assistant in, what its token ids mean to whoever writes answers out."""

from caldera.model.folder import Assistant, end_ids


class Vocabulary:
    """What one assistant's token ids mean."""

    def __init__(self, assistant: Assistant) -> None:
        """Read an assistant's tokenizer."""
        self.tokenizer = assistant.tokenizer
        ends = end_ids(assistant)
        self.ends = frozenset(ends)
        """Ids that end an answer."""
        rows = len(assistant.model.word_table)
        special = {assistant.model.image_token_id, self.tokenizer.pad_token_id} - self.ends
        self.barred = [*special, *range(len(self.tokenizer), rows)]
        """Ids that no answer may hold: pictures, padding, and rows that no token has."""

    def spell(self, token: int) -> str:
        """Spell one token."""
        return str(self.tokenizer.decode([token]))
