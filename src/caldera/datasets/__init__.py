"""Sets of Conversations: those that others wrote brought in, several mixed, thinned, counted, handed on."""
