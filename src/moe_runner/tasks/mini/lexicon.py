"""Words of the synthetic suite `glue_mini`: nouns, verbs, modifiers and polar words.

The word lists were written for this project. Nouns live in *scenes* (a kitchen, a farm, ...); a
verb says which kinds of noun it takes as its object, so that sentences stay plausible. Scenes in
`SCENES` are in domain, those in `OTHER_SCENES` out of domain.
"""

from dataclasses import dataclass

IRREGULAR_PLURALS = {
    "child": "children",
    "fisherman": "fishermen",
    "knife": "knives",
    "man": "men",
    "potato": "potatoes",
    "shelf": "shelves",
    "thief": "thieves",
    "tomato": "tomatoes",
    "woman": "women",
    "person": "people",
}
DOUBLED_CONSONANT = frozenset({"drop", "hug"})


@dataclass(frozen=True)
class Noun:
    """A countable noun, or a proper name.

    Attributes:
        word: singular form.
        plural: plural form; equal to `word` for a name.
        kind: what it is, as verbs see it ("person", "fruit", ...).
        pronoun: "he", "she" or "it"; "" for a person of unknown gender.
        is_name: true for a proper name, which takes no determiner.
    """

    word: str
    plural: str
    kind: str
    pronoun: str = "it"
    is_name: bool = False


@dataclass(frozen=True)
class Verb:
    """The forms of a verb, and the kinds of noun that can be its object (none: intransitive)."""

    base: str
    third: str
    past: str
    participle: str
    ing: str
    takes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """People, things and places that go together."""

    name: str
    people: tuple[Noun, ...]
    things: tuple[Noun, ...]
    places: tuple[str, ...]


def pluralize(word: str) -> str:
    """Return the plural of a noun."""
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def conjugate(forms: str, takes: str = "") -> Verb:
    """Build a verb from "base", or from "base past participle" if it is irregular.

    Args:
        forms: one word, or three words separated by spaces.
        takes: kinds of object, separated by spaces; empty for an intransitive verb.
    """
    base, *irregular = forms.split()
    stem = base + base[-1] if base in DOUBLED_CONSONANT else base
    silent_e = base.endswith("e") and not base.endswith("ee")
    if irregular:
        past, participle = irregular
        doubled = {"cut": "cutting", "run": "running", "swim": "swimming", "sit": "sitting"}
        doubled["shut"] = "shutting"
        ing = doubled.get(base, base[:-1] + "ing" if silent_e else base + "ing")
    elif base.endswith("y") and base[-2] not in "aeiou":
        past = participle = base[:-1] + "ied"
        ing = base + "ing"
    else:
        past = participle = base + "d" if base.endswith("e") else stem + "ed"
        ing = base[:-1] + "ing" if silent_e else stem + "ing"
    return Verb(base, pluralize(base), past, participle, ing, tuple(takes.split()))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _verbs(forms: str, takes: str = "") -> tuple[Verb, ...]:
    return tuple(conjugate(verb, takes) for verb in forms.split("|"))


def _nouns(kind: str, words: str, pronoun: str = "it") -> tuple[Noun, ...]:
    return tuple(Noun(word, pluralize(word), kind, pronoun) for word in words.split())


def _people(words: str) -> tuple[Noun, ...]:
    return _nouns("person", words, "")


def _names(words: str, pronoun: str) -> tuple[Noun, ...]:
    return tuple(Noun(word, word, "person", pronoun, is_name=True) for word in words.split())


# People whose gender is known, for pronouns and reflexives; they fit into every scene.
NAMES = _names("John Tom Paul David Peter", "he") + _names("Mary Anna Lisa Sarah Emma", "she")
GENDERED = _nouns("person", "boy man uncle king brother", "he") + _nouns(
    "person", "girl woman aunt queen sister", "she"
)
PERSON = Noun("person", "people", "person", "")

SCENES = (
    Scene(
        "kitchen",
        _people("chef baker waiter guest grocer"),
        _nouns("dish", "cake pie soup sandwich pizza")
        + _nouns("fruit", "apple orange lemon")
        + _nouns("vegetable", "potato tomato onion")
        + _nouns("tool", "knife spoon")
        + _nouns("item", "plate basket"),
        ("in the kitchen", "in the restaurant", "at the market", "in the bakery"),
    ),
    Scene(
        "school",
        _people("teacher student librarian writer poet"),
        _nouns("book", "novel poem story dictionary")
        + _nouns("document", "letter essay")
        + _nouns("tool", "pencil ruler")
        + _nouns("item", "bag desk"),
        ("in the classroom", "in the library", "at the school", "in the yard"),
    ),
    Scene(
        "farm",
        _people("farmer hunter neighbor gardener shepherd"),
        _nouns("animal", "horse cow dog rabbit goat")
        + _nouns("flower", "rose tulip lily")
        + _nouns("tool", "shovel hammer")
        + _nouns("door", "gate")
        + _nouns("vehicle", "tractor"),
        ("on the farm", "in the barn", "in the garden", "near the river"),
    ),
    Scene(
        "street",
        _people("driver mechanic officer tourist thief"),
        _nouns("vehicle", "car truck bicycle bus taxi")
        + _nouns("garment", "coat hat shirt")
        + _nouns("item", "wallet box")
        + _nouns("door", "window"),
        ("in the street", "in the garage", "at the station", "near the bridge"),
    ),
    Scene(
        "theater",
        _people("singer musician actor dancer artist"),
        _nouns("instrument", "guitar violin piano drum")
        + _nouns("garment", "mask dress")
        + _nouns("picture", "painting portrait")
        + _nouns("item", "mirror lamp"),
        ("on the stage", "in the theater", "in the museum", "at the festival"),
    ),
    Scene(
        "office",
        _people("lawyer manager clerk engineer banker"),
        _nouns("document", "report contract offer bill")
        + _nouns("machine", "computer printer clock")
        + _nouns("item", "key chair")
        + _nouns("door", "door"),
        ("in the office", "at the bank", "in the hall", "at the hotel"),
    ),
)
OTHER_SCENES = (
    Scene(
        "hospital",
        _people("doctor nurse patient surgeon visitor"),
        _nouns("machine", "scanner monitor")
        + _nouns("item", "bandage pillow bottle")
        + _nouns("vehicle", "ambulance")
        + _nouns("document", "chart"),
        ("in the hospital", "at the clinic", "in the pharmacy", "in the lobby"),
    ),
    Scene(
        "harbor",
        _people("sailor captain fisherman swimmer diver"),
        _nouns("vehicle", "boat ferry canoe")
        + _nouns("animal", "seal turtle dolphin")
        + _nouns("tool", "rope anchor")
        + _nouns("item", "shell net"),
        ("on the beach", "at the harbor", "on the island", "near the lighthouse"),
    ),
    Scene(
        "stadium",
        _people("player coach runner referee supporter"),
        _nouns("item", "trophy ball racket medal")
        + _nouns("garment", "helmet jersey")
        + _nouns("machine", "camera"),
        ("in the stadium", "at the gym", "on the field", "in the park"),
    ),
    Scene(
        "capital",
        _people("senator minister reporter mayor judge"),
        _nouns("document", "law plan petition statement")
        + _nouns("picture", "photo")
        + _nouns("item", "flag microphone")
        + _nouns("vehicle", "limousine"),
        ("in the capital", "at the court", "in the palace", "at the embassy"),
    ),
)

NOT_JOBS = ("guest", "student", "neighbor", "tourist", "thief")

# Nouns that name every member of a kind.
HYPERNYMS = {
    noun.kind: noun
    for kind in _words("fruit vegetable animal flower vehicle instrument tool garment machine")
    for noun in _nouns(kind, kind)
} | {"person": PERSON}

_MOVABLE = "dish fruit vegetable tool item book garment picture flower machine instrument document"
VERBS = tuple(
    conjugate(forms, takes)
    for forms, takes in (
        ("cook", "dish vegetable"),
        ("prepare", "dish vegetable"),
        ("eat ate eaten", "dish fruit vegetable"),
        ("taste", "dish fruit"),
        ("cut cut cut", "dish fruit vegetable flower"),
        ("slice", "fruit vegetable"),
        ("read read read", "book document"),
        ("write wrote written", "book document"),
        ("sign", "document"),
        ("accept", "document"),
        ("reject", "document"),
        ("print", "document"),
        ("feed fed fed", "animal"),
        ("chase", "animal"),
        ("catch caught caught", "animal"),
        ("wash", "vehicle garment animal vegetable"),
        ("pick", "flower fruit"),
        ("water", "flower"),
        ("drive drove driven", "vehicle"),
        ("park", "vehicle"),
        ("repair", "vehicle machine instrument"),
        ("fix", "vehicle machine instrument"),
        ("break broke broken", "machine instrument tool"),
        ("wear wore worn", "garment"),
        ("play", "instrument"),
        ("tune", "instrument"),
        ("paint", "picture door"),
        ("open", "door"),
        ("close", "door"),
        ("shut shut shut", "door"),
        ("use", "tool machine"),
        ("borrow", "tool book vehicle"),
        ("buy bought bought", _MOVABLE + " vehicle animal"),
        ("purchase", _MOVABLE + " vehicle animal"),
        ("sell sold sold", _MOVABLE + " vehicle animal"),
        ("find found found", _MOVABLE),
        ("discover", _MOVABLE),
        ("lose lost lost", "tool item book garment document"),
        ("carry", "tool item book instrument"),
        ("hide hid hidden", "tool item book document picture"),
        ("conceal", "tool item book document picture"),
        ("steal stole stolen", "item vehicle picture instrument machine"),
        ("drop", "tool item dish"),
        ("clean", "item machine tool instrument"),
        ("throw threw thrown", "item"),
    )
)
# Verbs between people; their subject and object can be exchanged.
SOCIAL_VERBS = _verbs(
    "help|assist|call|phone|meet met met|visit|thank|praise|criticize|warn|follow|invite|blame|"
    "hug|embrace|watch|observe|admire|trust|ignore|teach taught taught|greet",
    takes="person",
)
INTRANSITIVE_VERBS = _verbs(
    "sleep slept slept|laugh|cry|sing sang sung|dance|wait|smile|arrive|rest|work|talk|"
    "sit sat sat|run ran run|swim swam swum"
)

# Verbs that sound odd in the progressive, and those that cannot go without their object.
NOT_PROGRESSIVE = frozenset(
    _words(
        "accept blame break buy criticize discover drop find greet invite lose meet purchase "
        "reject steal trust"
    )
)
NEVER_WITHOUT_OBJECT = _words(
    "find discover repair fix conceal wear carry feed greet thank blame throw invite embrace"
)

SYNONYM_PAIRS = (
    ("cook", "prepare"),
    ("cut", "slice"),
    ("repair", "fix"),
    ("close", "shut"),
    ("buy", "purchase"),
    ("find", "discover"),
    ("hide", "conceal"),
    ("help", "assist"),
    ("call", "phone"),
    ("hug", "embrace"),
    ("watch", "observe"),
)
OPPOSITE_PAIRS = (
    ("accept", "reject"),
    ("open", "close"),
    ("open", "shut"),
    ("buy", "sell"),
    ("purchase", "sell"),
    ("find", "lose"),
    ("discover", "lose"),
    ("praise", "criticize"),
    ("break", "repair"),
    ("break", "fix"),
    ("trust", "ignore"),
    ("laugh", "cry"),
)
NOUN_SYNONYM_PAIRS = (
    ("teacher", "instructor"),
    ("student", "pupil"),
    ("thief", "robber"),
    ("lawyer", "attorney"),
    ("manager", "boss"),
    ("writer", "author"),
    ("artist", "painter"),
    ("doctor", "physician"),
    ("reporter", "journalist"),
    ("coach", "trainer"),
    ("car", "automobile"),
    ("bicycle", "bike"),
    ("rabbit", "bunny"),
    ("photo", "photograph"),
    ("story", "tale"),
)

PAST_TIMES = ("yesterday", "last week", "on Monday", "on Friday", "this morning", "after lunch")
HABITUAL_TIMES = ("every day", "every week", "on Mondays", "on Fridays", "in the summer")
FUTURE_TIMES = ("tomorrow", "next week", "tonight", "before dinner")

# Adjectives by the kind of noun; neighbours (0-1, 2-3, ...) are opposites.
PERSON_ADJECTIVES = ("young", "old", "tall", "short", "happy", "sad", "rich", "poor")
ANIMAL_ADJECTIVES = ("young", "old", "big", "small", "white", "black")
THING_ADJECTIVES = ("new", "old", "big", "small", "red", "blue", "cheap", "expensive")
FOOD_ADJECTIVES = ("big", "small", "sweet", "sour", "cheap", "expensive", "hot", "cold")
FOOD_KINDS = ("dish", "fruit", "vegetable")
MANNERS = ("slowly", "quickly", "quietly", "carefully", "alone")
# Conjunctions and verbs before a clause: what they introduce is true, or it may not be.
FACTUAL_LINKS = ("because", "although", "after")
TIME_LINKS = ("before", "while", "after")
OPEN_LINKS = ("if", "unless", "in case")
KNOWING = ("knew", "forgot", "remembered")
BELIEVING = ("hoped", "claimed", "believed")
NEIGHBORHOOD = ("near", "behind", "with")
CLAUSE_VERBS = _verbs("say said said|think thought thought|believe|report")
TWEET_STARTS = ("wow,", "breaking:", "just heard that", "so", "guess what,")
SOURCES = ("the police", "a newspaper", "an expert", "the government", "a witness")
# Verbs before "to": what follows did not happen, did happen, or may have happened.
FAILING = ("failed to", "refused to", "forgot to")
SUCCEEDING = ("managed to",)
INTENDING = ("wanted to", "hoped to", "planned to", "promised to")
REASONS = (
    "because of the rain",
    "because of a bet",
    "for the first time",
    "for a friend",
    "just for fun",
    "in spite of the noise",
)

# Reviews: films are in domain; meals and phones, with partly other polar words, out of domain.
MOVIE_ASPECTS = _words(
    "acting story plot script music dialogue ending cast humor direction pace photography"
)
MASS_ASPECTS = frozenset(
    _words("acting music dialogue humor direction photography food coffee bread software")
)
MOVIE_NOUNS = ("movie", "film", "comedy", "drama", "thriller", "sequel", "documentary", "romance")
MEAL_ASPECTS = ("food", "menu", "dessert", "coffee", "soup", "bread", "salad", "sauce")
MEAL_NOUNS = ("meal", "dinner", "lunch", "breakfast", "dish")
PHONE_ASPECTS = ("battery", "screen", "camera", "keyboard", "speaker", "design", "software")
PHONE_NOUNS = ("phone", "device", "tablet", "gadget", "laptop")
POSITIVE_ADJECTIVES = _words(
    "brilliant charming clever delightful enjoyable entertaining fresh funny good great lovely "
    "moving original powerful smart strong superb touching warm wonderful impressive excellent"
)
NEGATIVE_ADJECTIVES = _words(
    "awful bad boring clumsy confusing dull empty forgettable lame lazy messy painful pointless "
    "predictable shallow silly stale terrible tedious tired ugly weak"
)
MEAL_POSITIVE_ADJECTIVES = _words(
    "delicious tasty crisp healthy fresh good great excellent superb wonderful"
)
MEAL_NEGATIVE_ADJECTIVES = _words(
    "bland greasy salty soggy overcooked stale awful bad terrible boring"
)
PHONE_POSITIVE_ADJECTIVES = _words(
    "reliable sturdy fast handy useful good great impressive superb clever"
)
PHONE_NEGATIVE_ADJECTIVES = _words(
    "slow fragile noisy outdated useless faulty bad terrible ugly clumsy"
)
LIKING = ("loved", "enjoyed", "liked", "adored")
DISLIKING = ("hated", "disliked", "loathed", "despised")
# The first two of each fit anything, the others what entertains.
POSITIVE_VERBS = _verbs("impress|please|delight|charm|amuse")
NEGATIVE_VERBS = _verbs("disappoint|annoy|irritate|bore|insult")
INTENSIFIERS = ("truly", "really", "quite", "so", "simply")
IRREGULAR_COMPARATIVES = {"good": "better", "bad": "worse"}

# Reversing words: "not good", "hardly good" are bad; "not dull" is good.
REVERSERS = ("not", "never", "hardly", "far from", "anything but")

# Questions of the kind that people ask on the web.
TOPICS = _words(
    "French Spanish chess physics history English cooking swimming drawing math music biology"
)
CITIES = _words("Paris London Rome Berlin Madrid Boston Chicago Tokyo")
QUALIFIERS = (
    "as a student",
    "as a beginner",
    "without help",
    "on my own",
    "at my age",
    "this year",
    "after work",
    "during the summer",
)
QUESTION_FRAMES = {
    "how": (
        "how can I {}",
        "how do I {}",
        "what is the best way to {}",
        "what should I do to {}",
        "is there a good way to {}",
    ),
    "why": (
        "why should I {}",
        "why is it a good idea to {}",
        "what is the reason to {}",
    ),
    "where": (
        "where can I {}",
        "what is the best place to {}",
        "which place should I choose to {}",
    ),
    "cost": (
        "how much does it cost to {}",
        "how expensive is it to {}",
        "how much money do I need to {}",
    ),
    "time": (
        "how long does it take to {}",
        "how much time do I need to {}",
        "how many weeks does it take to {}",
    ),
}
