"""An assistant in, what its token ids mean to whoever writes answers out."""

from caldera.model.folder import LlavaBundle, eos_token_ids


class TokenIds:
    """What one assistant's token ids mean."""

    def __init__(self, assistant: LlavaBundle) -> None:
        """Read an assistant's tokenizer."""
        self.tokenizer = assistant.tokenizer
        ends = eos_token_ids(assistant)
        self.eos = frozenset(ends)
        """Ids that end an answer."""
        rows = len(assistant.model.embedding_weight)
        special = {assistant.model.image_token_id, self.tokenizer.pad_token_id} - self.eos
        self.banned = [*special, *range(len(self.tokenizer), rows)]
        """Ids that no answer may hold: images, padding, and rows that no token has."""

    def decode(self, token: int) -> str:
        """Spell one token."""
        return str(self.tokenizer.decode([token]))
