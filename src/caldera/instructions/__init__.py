"""AnnotatedImages in, Conversations out: a teacher that never sees a pixel writes dialogues about images."""
