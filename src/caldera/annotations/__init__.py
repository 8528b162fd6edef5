"""Files that people made about images in, AnnotatedImages out."""
