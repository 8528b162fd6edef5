"""The embedded default: drawn pictures with COCO-style captions and boxes, and two tiny pretrained backbones."""
