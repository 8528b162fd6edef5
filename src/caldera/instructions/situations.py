"""Situations that an image can show, with what must be seen for each, and questions to reason about it."""

from dataclasses import dataclass

from caldera.annotations.noun_phrases import word_set

Need = frozenset[str]
"""Words of captions or categories of boxes, one of which must be there."""


def _need(words: str) -> Need:
    """Return the alternatives of a need, separated by commas."""
    return frozenset(word.strip() for word in words.split(","))


@dataclass(frozen=True, slots=True)
class Situation:
    """Something that is asked only about images that show all its needs."""

    needs: tuple[Need, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    """Answers; {evidence} stands for what is seen of the needs: 'a dog and a ball'."""


def _situation(needs: str, questions: tuple[str, ...], answers: tuple[str, ...]) -> Situation:
    """Return a situation; needs are separated by semicolons."""
    return Situation(tuple(map(_need, needs.split(";"))), questions, answers)


NO_REAL_SCENE = word_set(
    "toy toys lego statue statues sculpture cartoon animated cgi painting drawing stuffed doll figurine diorama plastic"
)
"""Words of captions about things that only look like what they are named."""

SITUATIONS: tuple[Situation, ...] = (
    _situation(
        "cake; birthday, candle",
        ("What are people most likely celebrating here?", "Which occasion does this look like, and why?"),
        ("Most likely a birthday, as one can see {evidence}.",
         "It looks like a birthday party: the picture shows {evidence}."),
    ),
    _situation(
        "baseball, baseball bat, baseball glove; bat, pitcher, batter, pitch, ball, baseball bat, baseball glove",
        ("Which sport is being played, and what gives it away?", "What should one watch out for close to this game?"),
        ("It is baseball, as one can tell from {evidence}.",
         "The ball, which is hard and fast: the picture shows {evidence}."),
    ),
    _situation(
        "tennis, tennis racket; racket, court, ball, serve, tennis racket, sports ball",
        ("Which sport is this, and how can one tell?", "What does the player try to do with the ball?"),
        ("It is tennis, as one can tell from {evidence}.",
         "To hit it over the net so that nobody can return it; one can see {evidence}."),
    ),
    _situation(
        "skis, ski, skier, snowboard, snowboarder; snow, slope, mountain",
        ("How should one dress for what is done here?", "What does one need to know before trying this?"),
        ("Warmly, as it is cold on the way down: the picture shows {evidence}.",
         "How to brake, and how to fall without harm; one can see {evidence}."),
    ),
    _situation(
        "surfboard, surf, surfer; wave, ocean, surfboard",
        ("What must one be able to do to enjoy this safely?", "What makes this sport difficult?"),
        ("One must swim well and keep one's balance, as one can see {evidence}.",
         "The water moves all the time, and there is only a moment to stand up; one can see {evidence}."),
    ),
    _situation(
        "skateboard",
        ("What could go wrong here, and what would help?", "What would protect someone who does this?"),
        ("The rider could fall from {evidence}; a helmet and pads would help.",
         "A helmet and knee pads, as one easily falls: the picture shows {evidence}."),
    ),
    _situation(
        "kite; fly, sky",
        ("What does the picture tell about the wind?", "What kind of day was it most likely?"),
        ("There must be some wind, as one can see {evidence}, and a kite needs wind to stay up.",
         "A windy one: the picture shows {evidence}."),
    ),
    _situation(
        "stop sign",
        ("What must a driver do who comes to this place?", "Why would a car slow down here?"),
        ("Stop and look before driving on, as there is {evidence}.",
         "Because every driver must stop and give way here: one can see {evidence}."),
    ),
    _situation(
        "parking meter",
        ("What should a driver do before walking away from a car here?", "What does parking cost here?"),
        ("Pay for the time: the picture shows {evidence}.",
         "Most likely some coins, as one can see {evidence}."),
    ),
    _situation(
        "fire hydrant",
        ("Who needs what is shown here, and when?", "Why should no car park right here?"),
        ("Firefighters, who get water here when there is a fire nearby: the picture shows {evidence}.",
         "Because firefighters must reach {evidence} quickly."),
    ),
    _situation(
        "traffic light; car, bus, truck, intersection, street, road",
        ("Why may someone have to wait here?", "What keeps the traffic in order at this place?"),
        ("When the light is red, everybody waits: one can see {evidence}.",
         "The light tells who may go; one can see {evidence}."),
    ),
    _situation(
        "train, subway; station, platform",
        ("What do people come to this place for?", "What would a person on the platform most likely be doing?"),
        ("To get on or off a train, as one can see {evidence}.",
         "Waiting to get on: the picture shows {evidence}."),
    ),
    _situation(
        "airplane; airport, runway, tarmac, terminal, gate",
        ("What happens at a place like this?", "What are the people who come here about to do?"),
        ("Passengers get on and off their flights; one can see {evidence}.",
         "Most of them are about to travel, as the picture shows {evidence}."),
    ),
    _situation(
        "bus; street, road, city, stop, bus stop",
        ("Who would wait for this vehicle?", "How could somebody without a car get across town from here?"),
        ("People who want to get through the town without a car of their own; one can see {evidence}.",
         "By bus: the picture shows {evidence}."),
    ),
    _situation(
        "bed; suitcase",
        ("What could this room be, and why?", "What may the guest of this room be doing in town?"),
        ("It could be a hotel or guest room, as one can see {evidence}.",
         "Traveling, perhaps: one can see {evidence}."),
    ),
    _situation(
        "suitcase, luggage",
        ("What may the owner of these things be about to do?", "What were these things made for?"),
        ("To travel, or to come home from a journey: one can see {evidence}.",
         "For journeys, to hold clothes and whatever else a traveler needs: the picture shows {evidence}."),
    ),
    _situation(
        "kitchen, counter; person; knife, cut, cook, prepare, chop, food",
        ("What will probably happen to the food next?", "What is likely to follow what is being done here?"),
        ("It will probably be cooked or served, as one can see {evidence}.",
         "A meal, most likely: the picture shows {evidence}."),
    ),
    _situation(
        "people; dining table, table; dinner, meal, restaurant, cake, eat, wine glass, plate",
        ("What brings these people together?", "Why are the people at the table?"),
        ("They share food, as one can see {evidence}.", "To eat together: the picture shows {evidence}."),
    ),
    _situation(
        "dining table, table; fork, knife, spoon, plate; wine glass, cup, bowl",
        ("What is this table ready for?", "What do the things on the table tell about the next hour?"),
        ("For a meal: one can see {evidence}.", "That somebody will probably eat here, as one can see {evidence}."),
    ),
    _situation(
        "keyboard, laptop, computer; sandwich, pizza, lunch, tray",
        ("How does the owner of this place spend a lunch break?", "What does the place of the food tell?"),
        ("Probably at the computer, as one can see {evidence}.",
         "That somebody eats while working: the picture shows {evidence}."),
    ),
    _situation(
        "laptop, keyboard, computer; desk, mouse, office, cubicle",
        ("What is this place used for?", "What would somebody who sits down here probably do?"),
        ("For work at a computer, as one can see {evidence}.",
         "Work or write at the computer: the picture shows {evidence}."),
    ),
    _situation(
        "toothbrush",
        ("At what times of the day are these things used?", "What do people do with the things shown here?"),
        ("In the morning and before going to bed, when people brush their teeth: one can see {evidence}.",
         "They brush their teeth, as the picture shows {evidence}."),
    ),
    _situation(
        "sheep, cow, horse, zebra, giraffe, elephant, goat; grass, graze, meadow",
        ("What is there to eat for an animal here?", "Why is this a good place for such an animal?"),
        ("Grass: one can see {evidence}.", "It finds enough grass to eat, as the picture shows {evidence}."),
    ),
    _situation(
        "sheep, cow, horse, zebra, giraffe, elephant, bear, bird; zoo, enclosure, cage, barn, captive",
        ("How can one tell that people take care of the animals here?", "What shows that this is not the wild?"),
        ("From the place: one can see {evidence}.",
         "What people built: the picture shows {evidence}."),
    ),
    _situation(
        "baby, cub, calf, young; elephant, bear, horse, zebra, giraffe, cow, sheep",
        ("Why does a young animal stay close to the old ones?", "What do the grown animals do for the young?"),
        ("They feed and protect it; one can see {evidence}.", "They keep it safe: the picture shows {evidence}."),
    ),
    _situation(
        "dog; frisbee, ball, toy, stick, sports ball",
        ("What does the dog most likely want?", "How could one make this dog happy?"),
        ("To play: one can see {evidence}.", "By playing with it: the picture shows {evidence}."),
    ),
    _situation(
        "dog, cat; food, sandwich, can, hot dog, fruit, vegetable, pizza; person",
        ("Why might the animal stay so close to the person?", "What may the animal hope for?"),
        ("It may hope for something to eat, as one can see {evidence}.",
         "For a bite: the picture shows {evidence}."),
    ),
    _situation(
        "cat, bird; eat, bowl, fruit, apple",
        ("What keeps the animal busy?", "Why would the animal come to this spot?"),
        ("Its food, as one can see {evidence}.", "To eat: the picture shows {evidence}."),
    ),
    _situation(
        "cat, dog; bed, couch, blanket, pillow",
        ("Why may the animal have chosen this spot?", "What makes this a good place for a nap?"),
        ("It is soft and warm: one can see {evidence}.", "It is comfortable: the picture shows {evidence}."),
    ),
    _situation(
        "cat, dog; mirror, reflection",
        ("What may the animal take its own image for?", "Why does there seem to be a second animal?"),
        ("For another animal, as one can see {evidence}.", "It is a reflection: the picture shows {evidence}."),
    ),
    _situation(
        "umbrella; rain, rainy, wet",
        ("What are the umbrellas for at this moment?", "What does one know about the weather?"),
        ("They keep people dry, as one can see {evidence}.", "It is wet, as the picture shows {evidence}."),
    ),
    _situation(
        "umbrella; beach, patio, sun, sunny",
        ("What are the umbrellas good for here?", "Where would one sit to get out of the sun?"),
        ("They give shade, as one can see {evidence}.", "Under an umbrella: the picture shows {evidence}."),
    ),
    _situation(
        "christmas, decoration",
        ("What time of the year was it most likely?", "What are people here getting ready for?"),
        ("A holiday such as Christmas is near: one can see {evidence}.",
         "For a holiday: the picture shows {evidence}."),
    ),
    _situation(
        "snow, snowy",
        ("Which season is it most likely, and why?", "What would you wear to go to this place?"),
        ("Winter, as one can see {evidence}.", "A warm coat and boots: the picture shows {evidence}."),
    ),
    _situation(
        "helmet; bike, bicycle, motorcycle, bat, rider, skateboard, race, baseball bat, climb",
        ("What is a helmet good for here?", "Why would it be unwise to do this with a bare head?"),
        ("It protects the head if something goes wrong; one can see {evidence}.",
         "A blow or a fall could hurt the head: the picture shows {evidence}."),
    ),
    _situation(
        "motorcycle, bicycle, bike; person; ride, rider, sit, race",
        ("What should a person wear to do this?", "What must the rider keep in mind?"),
        ("A helmet, as one can see {evidence}.", "To keep the balance and mind the way: the picture shows {evidence}."),
    ),
    _situation(
        "climb, climber; rock, rope, wall, ice, harness, mountain, cliff",
        ("What makes this dangerous?", "What would you check before you do this?"),
        ("A fall from up there would be bad; one can see {evidence}.",
         "That the hold is firm and the rope is sound, as the picture shows {evidence}."),
    ),
    _situation(
        "pool, swim, swimmer; water, pool, jump, dive",
        ("What must one be able to do to enjoy this safely?", "How will somebody look who comes from here?"),
        ("Swim, as one can see {evidence}.", "Wet from head to foot: the picture shows {evidence}."),
    ),
    _situation(
        "fish, fishing; water, river, lake, shore, boat, ice",
        ("What does one need for this besides equipment?", "What is the aim of what is done here?"),
        ("A lot of patience; one can see {evidence}.", "To catch a fish, as the picture shows {evidence}."),
    ),
    _situation(
        "soccer, football; ball, player, field, team, kick, game",
        ("What are the players trying to do?", "What decides who wins here?"),
        ("To bring the ball to the other side and score: one can see {evidence}.",
         "The points that a team scores, as the picture shows {evidence}."),
    ),
    _situation(
        "race, racer; car, bike, motorcycle, track, runner, horse, dog",
        ("What matters most to those who take part?", "How is the winner found here?"),
        ("To be the first to arrive, as one can see {evidence}.", "The fastest wins: the picture shows {evidence}."),
    ),
    _situation(
        "guitar, band, microphone, drum, trumpet",
        ("What could one hear at this place?", "What would be missing without sound?"),
        ("Music, as one can see {evidence}.", "The music: the picture shows {evidence}."),
    ),
    _situation(
        "wedding, bride, groom",
        ("What is being celebrated?", "Why are people dressed up here?"),
        ("A wedding, as one can see {evidence}.", "For a wedding: the picture shows {evidence}."),
    ),
    _situation(
        "vase; flower, sunflower, bouquet, rose, tulip",
        ("What keeps the flowers fresh?", "What must somebody do so that this lasts a few days?"),
        ("Water: one can see {evidence}.", "Give the flowers fresh water, as the picture shows {evidence}."),
    ),
    _situation(
        "bench; park, hill, tree, view, garden, beach",
        ("Why may somebody who walks by stop here?", "What is this a good place for?"),
        ("To sit and look around, as one can see {evidence}.", "For a rest: the picture shows {evidence}."),
    ),
    _situation(
        "cake, donut; dessert, cookie, sweet, candy",
        ("How many guests would you expect here?", "For what could all this have been prepared?"),
        ("Many: one can see {evidence}, more than one person eats.",
         "For a party or a sale: the picture shows {evidence}."),
    ),
    _situation(
        "boat; dock, harbor, pier, port",
        ("Why is the boat where it is?", "What happens at a place like this?"),
        ("To take people or goods on board; one can see {evidence}.",
         "Boats arrive and leave: the picture shows {evidence}."),
    ),
    _situation(
        "beach; wave, sand, ocean, water, sandy",
        ("What could one do here on a warm day?", "What would you pack for a day at this place?"),
        ("Swim, or lie in the sand, as one can see {evidence}.",
         "A towel and something against the sun: the picture shows {evidence}."),
    ),
)  # fmt: skip
