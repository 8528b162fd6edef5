"""Published benchmarks, one small file each: official files in, items and published figures out."""
