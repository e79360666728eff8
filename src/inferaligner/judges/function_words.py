"""Function words of many languages: sentences are full of them, word salad is not."""

from __future__ import annotations

# By language of Latin script. Only membership is tested, so a word may stand in several languages.
_BY_LANGUAGE = {
    "en": "the of and to in a is that for it as was with be by on not he i this are or his from at which but",
    "en, too": "an had they you were their one all we can her has there been if more when will would who so",
    "en, informal": "your do its how what about any some i'm it's don't that's you're can't me she him them",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más pero sus le ya o",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an er",
    "it": "di che e la il un a per in una mi sono ho non ma lo ha le si ti i con cosa se io come da dei nel",
    "pt": "o que de e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das seu",
    "nl": "de van het een en in is dat op te zijn met voor niet aan er om ook als dan maar bij of uit nog",
    "sv, da, no": "och att det i en jag på är som för inte med den du har av ett till om og at af er ikke",
    "pl": "w i na z się nie do to że jest o jak a po co ale za od tak przez czy być dla są oraz",
    "cs, sk": "a se v na je že to o s z do i ve si pro za by jak ale po jako jsou nebo které tak sa nie aby",
    "ro": "și în de la cu nu pe o un că este să din care mai sunt pentru ce se au fi sau ca",
    "hu": "a az és hogy nem is egy meg ez de van volt csak mint el már azt ha vagy ki lesz",
    "fi": "ja on ei se että hän oli mutta ovat kun niin tai myös joka voi olla sen kuin ne jos tämä",
    "tr": "ve bir bu da de için ile olarak çok daha en gibi ne kadar olan sonra ama var her o mi veya değil",
    "id, ms": "yang dan di ini itu dengan untuk dari dalam tidak akan pada ke adalah saya anda atau juga",
    "vi": "và của là có không được một cho các trong người với đã này những để khi đó cũng như tôi bạn hoặc",
    "sw": "na ya wa kwa ni katika za la cha kuwa hii au kama pia huo lakini yake hiyo",
    "tl": "ang ng sa na mga at ay ko ka si hindi ito para kung may mo siya din isang",
    "hr, sl": "i je u se na da su za od kao koji ali iz bi do što ili nije sam ne in pri kot",
    "lt, lv, et": "ir yra kad su iš tai kaip un ka no par ar tas kas nav vai ja on ei see et mis kui või",
    "ca": "i el la de que a en un amb per no és les dels va als del més com",
    "af": "die en van in is het dat nie vir met op te om 'n hy sy was ook",
    "eu, cy, ga": "eta da bat ez du dira edo ere hau y yn yr ar mae i o ac an na agus is ar",
    "la, eo, sq": "et in est non ad ut cum qui quod sed ex aut la kaj estas al ne dhe në të një me për që",
}
FUNCTION_WORDS = frozenset(word for words in _BY_LANGUAGE.values() for word in words.split())

# Words that cannot follow a word in English prose: after an article comes a noun phrase, after "of" an
# object, and no second verb after "is". "can" and "will" are left out because they are nouns too. Words with
# capitals are not looked up ("plan A and").
_VERBS = "is are was were am been has had would could should did does"
_AFTER_ARTICLE = (
    "the a an my your our their of and or but be have to from with for by because if it he she they we i us"
    f" them him than then which who whose {_VERBS}"
)
_AFTER_PREPOSITION = f"of have but because {_VERBS}"
_IMPOSSIBLE = {
    "the a an my your our their every": _AFTER_ARTICLE,
    "of": f"to be and or with from for by {_AFTER_PREPOSITION}",
    "to": "of is are was were am has had been would could should did does",
    "with for from at by": _AFTER_PREPOSITION,
    "is are was were": f"have and or {_VERBS}",
    "has have had": "are were am has would could should did does or of",
    "and or but": "and or but",
}
NEVER_AFTER = {
    before: frozenset(after.split()) for befores, after in _IMPOSSIBLE.items() for before in befores.split()
}
