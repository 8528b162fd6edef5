"""An assistant and conversations in, answers out."""
