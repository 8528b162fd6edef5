"""Common knowledge about COCO's categories: synonyms, groups, settings and purposes."""

import re
from dataclasses import dataclass
from functools import cache

from caldera.annotations.english import plural

GROUPS: dict[str, tuple[str, ...]] = {
    "animal": (
        "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    ),
    "vehicle": (
        "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    ),
    "food": (
        "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake",
    ),
}  # fmt: skip
"""Groups that are part of everyday language, with their COCO categories."""

GROUPED = frozenset(category for members in GROUPS.values() for category in members)
"""Categories that are in any group."""

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "person": (
        "man", "men", "woman", "women", "boy", "girl", "child", "children", "kid", "baby", "lady", "guy", "player",
        "rider", "skier", "surfer", "crowd", "pedestrian", "couple", "group", "family", "he", "she", "someone",
        "passenger", "driver", "officer", "chef", "student", "adult", "toddler", "snowboarder", "skateboarder",
        "batter", "catcher", "pitcher", "umpire", "cowboy", "jockey", "spectator", "worker", "tourist", "persons",
    ),
    "bicycle": ("bike", "cycle"),
    "car": ("taxi", "cab", "van", "suv", "sedan", "vehicle", "jeep", "minivan", "automobile", "traffic"),
    "motorcycle": ("motorbike", "bike", "scooter", "moped"),
    "airplane": ("plane", "jet", "aircraft", "airliner", "jetliner", "aeroplane", "biplane"),
    "bus": ("coach", "trolley"),
    "train": ("locomotive", "subway", "tram", "railcar"),
    "truck": ("lorry", "pickup", "van", "trailer", "vehicle"),
    "boat": ("ship", "canoe", "kayak", "raft", "sailboat", "ferry", "yacht", "gondola", "vessel", "barge"),
    "traffic light": ("stoplight", "traffic signal", "stop light", "street light", "signal"),
    "fire hydrant": ("hydrant",),
    "bird": (
        "duck", "goose", "geese", "seagull", "gull", "pigeon", "parrot", "owl", "chicken", "swan", "eagle", "hawk",
        "penguin", "rooster", "ostrich", "flamingo", "crow", "parakeet", "hen", "turkey",
    ),
    "cat": ("kitten", "kitty", "feline"),
    "dog": ("puppy", "puppies", "canine"),
    "horse": ("pony", "ponies", "colt", "foal", "stallion"),
    "sheep": ("lamb", "goat", "ram", "ewe"),
    "cow": ("cattle", "bull", "calf", "calves", "ox", "oxen", "bovine", "steer"),
    "bear": ("cub", "polar bear"),
    "handbag": ("purse", "bag"),
    "backpack": ("bag", "rucksack", "knapsack"),
    "suitcase": ("luggage", "bag", "baggage"),
    "tie": ("necktie", "bowtie", "suit"),
    "sports ball": ("ball", "soccer ball", "baseball", "football", "basketball", "tennis ball", "volleyball"),
    "skis": ("ski",),
    "bottle": ("beer", "wine"),
    "wine glass": ("glass", "wine", "goblet"),
    "cup": ("mug", "glass", "coffee", "drink", "tea"),
    "bowl": ("dish",),
    "hot dog": ("hotdog", "sausage"),
    "donut": ("doughnut", "pastry", "pastries"),
    "cake": ("cupcake", "dessert", "pie", "pastry"),
    "chair": ("stool", "seat", "armchair", "recliner"),
    "couch": ("sofa", "loveseat", "futon"),
    "potted plant": ("plant", "flower", "flowers"),
    "dining table": ("table", "desk"),
    "tv": ("television", "screen", "monitor"),
    "laptop": ("computer", "notebook"),
    "mouse": ("computer mouse",),
    "keyboard": ("computer", "piano"),
    "cell phone": ("phone", "cellphone", "smartphone", "telephone"),
    "oven": ("stove",),
    "refrigerator": ("fridge", "freezer"),
    "sink": ("basin",),
    "book": ("magazine", "novel"),
    "teddy bear": ("stuffed animal", "teddy", "stuffed bear", "toy"),
    "hair drier": ("hair dryer", "blow dryer"),
    "toothbrush": ("tooth brush",),
}  # fmt: skip
"""Other words in a caption that may refer to a category, which is then not absent."""

FREQUENCIES: dict[str, int] = {
    "person": 40,
    **dict.fromkeys(("car", "chair", "dining table", "cup", "bottle"), 8),
    **dict.fromkeys(
        (
            "bowl",
            "handbag",
            "truck",
            "bench",
            "backpack",
            "book",
            "cell phone",
            "sink",
            "clock",
            "tv",
        ),
        4,
    ),
    **dict.fromkeys(
        (
            "potted plant",
            "couch",
            "dog",
            "knife",
            "sports ball",
            "traffic light",
            "cat",
            "umbrella",
        ),
        3,
    ),
    **dict.fromkeys(
        ("bus", "tie", "bed", "train", "vase", "spoon", "motorcycle", "surfboard", "skateboard"), 2
    ),
}
"""Rough numbers of images with a category in COCO, relative to 1 for those that are not listed."""

COLORS = (
    "red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "gray",
)  # fmt: skip

_INDOORS = (
    "room", "kitchen", "bathroom", "bedroom", "living room", "dining room", "restaurant", "office", "classroom",
)  # fmt: skip
_OUTDOORS = (
    "meadow", "desert", "park", "field", "forest", "parking lot", "garden", "zoo", "snow", "stadium",
)  # fmt: skip

SETTINGS: dict[str, str] = {
    **dict.fromkeys((*_INDOORS, *_OUTDOORS), "in"),
    **dict.fromkeys(("beach", "street", "tennis court", "sidewalk", "runway"), "on"),
    **dict.fromkeys(("airport", "train station", "skate park"), "at"),
}
"""Settings that captions mention, and the preposition of each."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """A purpose, and the categories that serve it."""

    goals: tuple[str, ...]
    """Questions whether anything in the image serves it, without naming a category."""

    uses: str
    """Predicate of an object that serves it, in the singular: 'keeps the rain off'."""

    categories: frozenset[str]


PURPOSES: tuple[Purpose, ...] = (
    Purpose(
        ("Rain is coming. Could something here keep a person dry?",
         "Would anyone in this picture find protection from the rain?"),
        "keeps the rain off", frozenset({"umbrella"}),
    ),
    Purpose(
        ("Someone here is hungry. Is there something to eat?",
         "Could a hungry visitor find a snack in this picture?"),
        "can be eaten", frozenset(GROUPS["food"]),
    ),
    Purpose(
        ("Someone wants to travel far by road or rail. Would anything here take them?",
         "Could a person be driven to another town from here?"),
        "takes people from town to town", frozenset({"car", "bus", "train", "motorcycle", "truck"}),
    ),
    Purpose(
        ("Someone is tired of standing. Is there something made to rest on?",
         "Is there a place to sit down made for people?"),
        "is made to sit on", frozenset({"chair", "couch", "bench", "bed"}),
    ),
    Purpose(
        ("Someone forgot their watch. Could they learn the time here?",
         "Would this picture help a person who must know what time it is?"),
        "tells the time", frozenset({"clock"}),
    ),
    Purpose(
        ("Could anything in this picture rise into the air?",
         "Is there something here that belongs in the sky?"),
        "can fly", frozenset({"airplane", "bird", "kite"}),
    ),
    Purpose(
        ("Someone packs for a journey. Is there something to put clothes into?",
         "Could a traveller carry their things in something from this picture?"),
        "holds a traveller's things", frozenset({"backpack", "suitcase", "handbag"}),
    ),
    Purpose(
        ("Someone must cross a lake. Is there anything to help them?",
         "Could a person get across deep water with something shown here?"),
        "carries people over water", frozenset({"boat", "surfboard"}),
    ),
    Purpose(
        ("A child wants a quiet hour with a story. Is there something to read?",
         "Could somebody who likes to read be happy here?"),
        "can be read", frozenset({"book"}),
    ),
    Purpose(
        ("Would a farmer get milk or wool from anything here?",
         "Is there an animal here that farmers keep for milk or wool?"),
        "gives milk or wool", frozenset({"cow", "sheep"}),
    ),
)  # fmt: skip

CATEGORIES_WITH_PURPOSE = frozenset(
    category for purpose in PURPOSES for category in purpose.categories
)
"""Categories that serve any purpose."""


@cache
def _names(categories: frozenset[str]) -> tuple[re.Pattern[str], dict[str, frozenset[str]]]:
    """Return a pattern for all names of categories, longest first, and the categories of each name."""
    meanings: dict[str, set[str]] = {}
    for category in categories:
        for name in (category.lower(), *OTHER_NAMES.get(category.lower(), ())):
            for form in (name, plural(name)):
                meanings.setdefault(form, set()).add(category)
    names = "|".join(re.escape(name) for name in sorted(meanings, key=len, reverse=True))
    pattern = re.compile(rf"\b(?:{names})\b")
    return pattern, {name: frozenset(meanings[name]) for name in meanings}


def mentioned_categories(text: str, categories: frozenset[str]) -> frozenset[str]:
    """Return every category that a word of `text` may refer to; a hot dog is not a dog."""
    if not categories:
        return frozenset()
    pattern, meanings = _names(categories)
    return frozenset().union(*(meanings[name] for name in pattern.findall(text.lower())))
