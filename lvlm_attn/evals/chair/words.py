"""The object words of CHAIR: what a caption may call each of the 80 COCO categories.

Facts from the synonym table of Lu et al., "Neural Baby Talk" (CVPR 2018), as used by Rohrbach et al., "Object
Hallucination in Image Captioning" (EMNLP 2018), https://github.com/LisaAnne/Hallucination, written anew here:
one entry per category, every word once and in the singular, misspellings and stray blanks of that table left
out. Plural forms are made by :func:`plurals`, and those that no rule gives are listed in :data:`IRREGULAR`.
"""

from __future__ import annotations

WORDS: dict[str, str] = {
    "person": (
        "girl, boy, man, woman, kid, child, chef, baker, adult, rider, baby, worker, passenger, "
        "sister, biker, policeman, cop, officer, lady, cowboy, bride, groom, male, female, guy, "
        "traveler, mother, father, gentleman, pitcher, player, skier, snowboarder, skater, "
        "skateboarder, foreigner, caller, offender, coworker, trespasser, patient, politician, "
        "soldier, grandchild, serviceman, walker, drinker, doctor, bicyclist, thief, buyer, teenager, "
        "student, camper, driver, hunter, shopper, villager"
    ),
    "bicycle": "bike, unicycle, minibike, trike",
    "car": "automobile, van, minivan, sedan, suv, hatchback, cab, jeep, coupe, taxicab, limo, taxi",
    "motorcycle": "scooter, motor bike, motor cycle, motorbike, moped",
    "airplane": "jetliner, plane, air plane, monoplane, aircraft, jet, airbus, biplane, seaplane",
    "bus": "minibus, trolley",
    "train": "locomotive, tramway, caboose",
    "truck": "pickup, lorry, hauler, firetruck",
    "boat": (
        "ship, liner, sailboat, motorboat, dinghy, powerboat, speedboat, canoe, skiff, yacht, kayak, "
        "catamaran, pontoon, houseboat, vessel, rowboat, trawler, ferryboat, watercraft, tugboat, "
        "schooner, barge, ferry, sailboard, paddleboat, lifeboat, freighter, steamboat, riverboat, "
        "battleship, steamship"
    ),
    "traffic light": "street light, traffic signal, stop light, streetlight, stoplight",
    "fire hydrant": "hydrant",
    "stop sign": "",
    "parking meter": "",
    "bench": "pew",
    "bird": (
        "ostrich, owl, seagull, goose, duck, parakeet, falcon, robin, pelican, waterfowl, heron, "
        "hummingbird, mallard, finch, pigeon, sparrow, seabird, osprey, blackbird, fowl, shorebird, "
        "woodpecker, egret, chickadee, quail, bluebird, kingfisher, buzzard, willet, gull, swan, "
        "bluejay, flamingo, cormorant, parrot, loon, gosling, waterbird, pheasant, rooster, "
        "sandpiper, crow, raven, turkey, oriole, cowbird, warbler, magpie, peacock, cockatiel, "
        "lorikeet, puffin, vulture, condor, macaw, peafowl, cockatoo, songbird"
    ),
    "cat": "kitten, feline, tabby",
    "dog": (
        "puppy, beagle, pup, chihuahua, schnauzer, dachshund, rottweiler, canine, pitbull, collie, "
        "pug, terrier, poodle, labrador, doggie, doberman, mutt, doggy, spaniel, bulldog, sheepdog, "
        "weimaraner, corgi, cocker, greyhound, retriever, brindle, hound, whippet, husky"
    ),
    "horse": (
        "colt, pony, racehorse, stallion, equine, mare, foal, palomino, mustang, clydesdale, bronc, bronco"
    ),
    "sheep": "lamb, ram, goat, ewe",
    "cow": "cattle, ox, calf, holstein, heifer, buffalo, bull, zebu, bison",
    "elephant": "",
    "bear": "panda",
    "zebra": "",
    "giraffe": "",
    "backpack": "knapsack",
    "umbrella": "",
    "handbag": "wallet, purse, briefcase",
    "tie": "bow, bow tie",
    "suitcase": "suit case, luggage",
    "frisbee": "",
    "skis": "ski",
    "snowboard": "",
    "sports ball": "ball",
    "kite": "",
    "baseball bat": "",
    "baseball glove": "",
    "skateboard": "",
    "surfboard": "longboard, skimboard, shortboard, wakeboard",
    "tennis racket": "racket",
    "bottle": "",
    "wine glass": "",
    "cup": "",
    "fork": "",
    "knife": "pocketknife",
    "spoon": "",
    "bowl": "container",
    "banana": "",
    "apple": "",
    "sandwich": "burger, sub, cheeseburger, hamburger",
    "orange": "",
    "broccoli": "",
    "carrot": "",
    "hot dog": "",
    "pizza": "",
    "donut": "doughnut, bagel",
    "cake": "cheesecake, cupcake, shortcake, coffeecake, pancake",
    "chair": "seat, stool",
    "couch": "sofa, recliner, futon, loveseat, settee, chesterfield",
    "potted plant": "houseplant",
    "bed": "",
    "dining table": "table, desk",
    "toilet": "urinal, commode, lavatory, potty",
    "tv": "monitor, television",
    "laptop": "computer, notebook, netbook, lenovo, macbook, laptop computer",
    "mouse": "",
    "remote": "",
    "keyboard": "",
    "cell phone": "mobile phone, phone, cellphone, telephone, smartphone, iphone",
    "microwave": "",
    "oven": "stovetop, stove, stove top oven",
    "toaster": "",
    "sink": "",
    "refrigerator": "fridge, freezer",
    "book": "",
    "clock": "",
    "vase": "",
    "scissors": "",
    "teddy bear": "teddybear",
    "hair drier": "hairdryer, hair dryer",
    "toothbrush": "",
}

IRREGULAR: dict[str, tuple[str, ...]] = {
    "person": ("people", "persons"),
    "man": ("men",),
    "woman": ("women",),
    "child": ("children",),
    "grandchild": ("grandchildren",),
    "policeman": ("policemen",),
    "gentleman": ("gentlemen",),
    "serviceman": ("servicemen",),
    "thief": ("thieves",),
    "knife": ("knives",),
    "pocketknife": ("pocketknives",),
    "calf": ("calves",),
    "ox": ("oxen",),
    "goose": ("geese",),
    "mouse": ("mice",),
    "bus": ("buses", "busses"),
    "minibus": ("minibuses", "minibusses"),
    "skis": (),
    "scissors": (),
    "sheep": (),
    "cattle": (),
    "bison": (),
    "aircraft": (),
    "watercraft": (),
    "luggage": (),
    "broccoli": (),
    "buffalo": ("buffaloes", "buffalos"),
    "flamingo": ("flamingos", "flamingoes"),
}

# A baby bear or an adult bear is a bear and no person; "animal" and "cub" are then nothing in the table.
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")


def plurals(word: str) -> tuple[str, ...]:
    """Returns the plural forms of an English noun; of several words only the last changes.

    Example:
        >>> plurals("wine glass"), plurals("puppy"), plurals("goose")
        (('wine glasses',), ('puppies',), ('geese',))
    """
    head, _, last = word.rpartition(" ")
    if last in IRREGULAR:
        forms = IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        forms = (last + "es",)
    elif last.endswith("y") and last[-2] not in "aeiou":
        forms = (last[:-1] + "ies",)
    else:
        forms = (last + "s",)
    return tuple(f"{head} {form}" if head else form for form in forms)
