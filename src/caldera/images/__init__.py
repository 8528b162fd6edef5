"""Image decoding and preprocessing: file to pixels, anyres tiling."""
