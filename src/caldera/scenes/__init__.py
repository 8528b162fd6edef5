"""The embedded default: drawn images with COCO-style captions and boxes, and two tiny pretrained backbones."""
