"""An assistant and questions in, scores and reports out."""
