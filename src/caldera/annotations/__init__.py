"""Files that people made about pictures in, AnnotatedImages out."""
