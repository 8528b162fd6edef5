"""Model folders and weight files, of caldera and of other projects."""
