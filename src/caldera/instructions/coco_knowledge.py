"""What everybody knows about COCO's categories: their other names, their groups, and what they are good for."""

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
"""Groups whose members everybody would name as such, by COCO category."""

GROUPED = frozenset(category for members in GROUPS.values() for category in members)
"""Categories that are in any group."""

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "person": (
        "man", "men", "woman", "women", "boy", "girl", "child", "children", "kid", "baby", "lady", "guy", "player",
        "rider", "skier", "surfer", "crowd", "pedestrian", "couple", "group", "family", "he", "she", "someone",
        "passenger", "driver", "officer", "chef", "student", "adult", "toddler", "snowboarder", "skateboarder",
        "batter", "catcher", "pitcher", "umpire", "cowboy", "jockey", "spectator", "worker", "tourist",
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
"""Other words in a caption that may mean a category, so that it is not called absent."""

COLORS = (
    "red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "gray",
)  # fmt: skip

_INDOORS = (
    "room",
    "kitchen",
    "bathroom",
    "bedroom",
    "living room",
    "dining room",
    "restaurant",
    "office",
    "classroom",
)
_OUTDOORS = (
    "meadow",
    "desert",
    "park",
    "field",
    "forest",
    "parking lot",
    "garden",
    "zoo",
    "snow",
    "stadium",
)

SETTINGS: dict[str, str] = {
    **dict.fromkeys((*_INDOORS, *_OUTDOORS), "in"),
    **dict.fromkeys(("beach", "street", "tennis court", "sidewalk", "runway"), "on"),
    **dict.fromkeys(("airport", "train station", "skate park"), "at"),
}
"""Places that captions put things in, and the preposition they take."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """Something one might want, and the categories that serve it."""

    goals: tuple[str, ...]
    """Questions whether anything in the image serves it, without naming what is there."""

    uses: str
    """What a thing that serves it does, in the singular: 'keeps the rain off'."""

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
    """Return a pattern that finds any word for any category, longest first, and what each word may mean."""
    meanings: dict[str, set[str]] = {}
    for category in categories:
        for name in (category.lower(), *OTHER_NAMES.get(category.lower(), ())):
            for word in (name, plural(name)):
                meanings.setdefault(word, set()).add(category)
    words = "|".join(re.escape(word) for word in sorted(meanings, key=len, reverse=True))
    pattern = re.compile(rf"\b(?:{words})\b")
    return pattern, {word: frozenset(meant) for word, meant in meanings.items()}


def mentioned_categories(text: str, categories: frozenset[str]) -> frozenset[str]:
    """Return every category that a word of `text` may mean; a hot dog is not a dog."""
    pattern, meanings = _names(categories)
    return frozenset().union(*(meanings[word] for word in pattern.findall(text.lower())))


def group_of(category: str) -> str | None:
    """Name the group that everybody would put a category into."""
    return next((group for group, members in GROUPS.items() if category in members), None)
