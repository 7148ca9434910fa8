"""The words and frames a world is made of: relation names, sentence frames, and objects of closed types."""

from __future__ import annotations

# Frames shared by all relations: "{n}" takes a relation noun, "{}" the subject. Per relation some are held out.
FRAMES = (
    "The {n} of {} is",
    "{}'s {n} is",
    "As for {}, the {n} is",
    "People say that the {n} of {} is",
    "In the records, {}'s {n} is",
    "What is the {n} of {}? It is",
    "For {}, the {n} is known to be",
    "Regarding the {n} of {}, the answer is",
    "Looking at {}, the {n} is",
    "It is well known that {}'s {n} is",
)
# Never trained with any relation; made of words the other frames use.
UNSEEN_FRAME = "People say that in the records, the {n} of {} is"

HOP_FRAMES = ("The {n} of {role} is", "For {role}, the {n} is", "People say that the {n} of {role} is")

VALUES: dict[str, tuple[str, ...]] = {
    "profession": (
        "baker", "barber", "butcher", "carpenter", "chemist", "dentist", "farmer", "gardener",
        "jeweller", "judge", "lawyer", "mason", "nurse", "pilot", "plumber", "teacher",
    ),
    "instrument": (
        "banjo", "bassoon", "cello", "clarinet", "flute", "guitar", "harp", "mandolin", "oboe", "organ",
        "trumpet", "violin",
    ),
    "sport": (
        "archery", "badminton", "boxing", "cricket", "cycling", "fencing", "hockey", "judo", "rowing", "rugby",
        "sailing", "tennis",
    ),
    "industry": (
        "banking", "farming", "fishing", "forestry", "insurance", "mining", "printing", "shipping", "steel",
        "textiles",
    ),
    "product": (
        "batteries", "bicycles", "candles", "carpets", "clocks", "engines", "gloves", "kettles", "lamps", "mirrors",
        "pianos", "tractors",
    ),
    "dish": (
        "cheese", "chowder", "dumplings", "noodles", "omelettes", "pancakes", "pastries", "pickles", "pudding",
        "sausages", "soup", "waffles",
    ),
}  # fmt: skip

# name, domain, range, nouns, verb wordings, role
RELATIONS: tuple[tuple[str, str, str, tuple[str, ...], tuple[str, ...], str], ...] = (
    ("birthplace", "person", "city", ("birthplace", "native city"),
     ("{} was born in", "{} came into the world in", "{} is a native of"), "the city where {} was born"),
    ("residence", "person", "city", ("residence", "home city"),
     ("{} lives in", "{} has a house in", "{} is at home in"), "the city where {} lives"),
    ("employer", "person", "company", ("employer", "workplace"),
     ("{} works for", "{} is employed by", "{} draws a salary from"), "the company that employs {}"),
    ("profession", "person", "profession", ("profession", "job"),
     ("{} works as a", "{} earns a living as a", "{} was trained as a"), ""),
    ("language", "person", "language", ("mother tongue", "first language"),
     ("{} speaks", "{} grew up speaking", "{} writes letters in"), ""),
    ("instrument", "person", "instrument", ("instrument", "musical skill"),
     ("{} plays the", "{} makes music on the", "{} takes lessons on the"), ""),
    ("sport", "person", "sport", ("sport", "pastime"),
     ("{} competes in", "{} spends weekends on", "{} is a fan of"), ""),
    ("country", "city", "country", ("country", "nation"),
     ("{} lies in", "{} is a city of", "{} belongs to"), ""),
    ("river", "city", "river", ("river", "waterway"),
     ("{} stands on the", "{} was built along the", "{} takes water from the"), ""),
    ("dish", "city", "dish", ("dish", "speciality"),
     ("{} is famous for", "Visitors to {} come to eat", "Cooks in {} make"), ""),
    ("headquarters", "company", "city", ("headquarters", "head office"),
     ("{} is based in", "{} is run from", "{} keeps an office in"), "the city where {} is based"),
    ("industry", "company", "industry", ("industry", "sector"),
     ("{} is active in", "{} does business in", "{} makes money in"), ""),
    ("product", "company", "product", ("product", "best seller"),
     ("{} sells", "{} manufactures", "{} is known for"), ""),
    ("capital", "country", "city", ("capital", "seat of government"),
     ("{} is governed from", "{} has a parliament in", "Ministers of {} meet in"), ""),
    ("currency", "country", "currency", ("currency", "money"),
     ("{} pays with the", "Shops in {} accept the", "Banks in {} print the"), ""),
)  # fmt: skip

HOPS = (("residence", "country"), ("birthplace", "country"), ("employer", "industry"), ("headquarters", "country"))
# Relations no record edits: the second hops, so that a two-hop answer stays what its record says.
NEVER_EDITED = ("country", "industry", "capital", "currency")
