"""Images with captions and boxes: readers of COCO folders and caption files."""
