"""Annotation formats of other tools, converted to COCO's: VIA's project and export, datumaro's own.

VIA (VGG Image Annotator 2) writes one entry per image with regions that have a shape and attributes; the attribute of
a usual name, or else the only one with a text, is the category. Datumaro writes one item per image with labels by
index. A polygon becomes its box.
"""

from typing import Any

_CATEGORY_ATTRIBUTES = ("category", "class", "label", "name", "object", "type")
"""Usual names of VIA's attribute with the category."""


def to_coco(content: object) -> dict[str, Any] | None:
    """Return a JSON value as COCO's object; None if it is of no known format."""
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
        return content
    if isinstance(content.get("items"), list) and isinstance(content.get("categories"), dict):
        return _from_datumaro(content)
    entries = content.get("_via_img_metadata", content)
    if isinstance(entries, dict) and entries and all(map(_is_via, entries.values())):
        return _from_via(entries)
    return None


def _is_via(entry: object) -> bool:
    return isinstance(entry, dict) and "filename" in entry and "regions" in entry


def _from_via(entries: dict[str, Any]) -> dict[str, Any]:
    """Convert images with regions."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for number, entry in enumerate(entries.values()):
        images.append({"id": number, "file_name": entry["filename"]})
        if "caption" in (attributes := _fields(entry.get("file_attributes"))):
            annotations.append({"image_id": number, "caption": attributes["caption"]})
        for region in _entries(entry["regions"]):
            shape = _fields(region.get("shape_attributes"))
            name = _category(_fields(region.get("region_attributes")))
            category = categories.setdefault(name, len(categories)) if name else None
            bbox: list[Any] | None = [shape.get(side) for side in ("x", "y", "width", "height")]
            if "all_points_x" in shape:
                bbox = _bounds(shape["all_points_x"], shape.get("all_points_y"))
            annotations.append({"image_id": number, "category_id": category, "bbox": bbox})
    named_categories = [{"id": number, "name": name} for name, number in categories.items()]
    return {"images": images, "annotations": annotations, "categories": named_categories}


def _from_datumaro(content: dict[str, Any]) -> dict[str, Any]:
    """Convert items; an object that has neither a box nor points gets none, which makes its image invalid."""
    labels = _entries(_fields(content["categories"].get("label")).get("labels"))
    categories = [
        {"id": number, "name": label.get("name"), "supercategory": label.get("parent")}
        for number, label in enumerate(labels)
    ]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(_entries(content["items"])):
        image = _fields(item.get("image")) or _fields(item.get("media"))
        size = image.get("size")
        height, width = size if isinstance(size, list) and len(size) == 2 else (None, None)
        name = image.get("path") or item.get("id")
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for entry in _entries(item.get("annotations")):
            if entry.get("type") == "caption":
                annotations.append({"image_id": number, "caption": entry.get("caption")})
            elif "label_id" in entry:
                points, bbox = entry.get("points"), entry.get("bbox")
                if isinstance(points, list):
                    bbox = _bounds(points[::2], points[1::2])
                fields = {"category_id": entry["label_id"], "bbox": bbox}
                annotations.append({"image_id": number, **fields})
    return {"images": images, "annotations": annotations, "categories": categories}


def _category(attributes: dict[str, Any]) -> str:
    """Return the category in the attributes of a region; empty if there is none, or if it could be several."""
    texts = {key.lower(): text for key, text in attributes.items() if isinstance(text, str)}
    usual = [texts[key] for key in _CATEGORY_ATTRIBUTES if key in texts][:1]
    [name] = usual or [*texts.values()] if usual or len(texts) == 1 else [""]
    return name.strip()


def _fields(value: object) -> dict[str, Any]:
    """Return an object's fields; none if the value is no object."""
    return value if isinstance(value, dict) else {}


def _entries(value: object) -> list[dict[str, Any]]:
    """Return the objects of a list, or of an object by key; none if the value is neither."""
    if isinstance(value, dict):
        value = [*value.values()]
    return [_fields(entry) for entry in value] if isinstance(value, list) else []


def _bounds(xs: object, ys: object) -> list[float] | None:
    """Return the box of points as [left, top, width, height]; None if they are no points."""
    if not isinstance(xs, list) or not isinstance(ys, list) or not xs or not ys:
        return None
    if not all(isinstance(value, int | float) for value in (*xs, *ys)):
        return None
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
