"""Drawn demo data: scenes, captions, COCO folders, and the shipped backbones."""
