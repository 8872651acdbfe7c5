"""English inflection, as far as the scenes need it: verbs, plurals, articles.

A verb of several words inflects the first ("run away from": "ran away from"), a noun of several words the last.
"""

import re

# Base, past, past participle.
_IRREGULAR_VERBS = """
    beat beat beaten, begin began begun, bite bit bitten, break broke broken, bring brought brought, build built built,
    buy bought bought, catch caught caught, come came come, cut cut cut, deal dealt dealt, dig dug dug, do did done,
    draw drew drawn, drink drank drunk, drive drove driven, eat ate eaten, fall fell fallen, feed fed fed,
    fight fought fought, find found found, flee fled fled, forget forgot forgotten, forgive forgave forgiven,
    get got got, give gave given, go went gone, grow grew grown, have had had, hide hid hidden, hit hit hit,
    hold held held, hurt hurt hurt, keep kept kept, leave left left, lend lent lent, let let let, lose lost lost,
    make made made, mislay mislaid mislaid, outrun outran outrun, overtake overtook overtaken, pay paid paid,
    put put put, read read read, ride rode ridden, ring rang rung, rise rose risen, run ran run, say said said,
    see saw seen, sell sold sold, send sent sent, set set set, sew sewed sewn, shed shed shed, show showed shown,
    shut shut shut, sing sang sung, sit sat sat, sleep slept slept, speak spoke spoken, spit spat spat,
    spread spread spread, stand stood stood, steal stole stolen, strike struck struck, sweep swept swept,
    swim swam swum, take took taken, teach taught taught, tear tore torn, think thought thought, throw threw thrown,
    upset upset upset, wake woke woken, weep wept wept, win won won, write wrote written
"""
_PAST = {base: (past, participle) for base, past, participle in map(str.split, _IRREGULAR_VERBS.split(","))}
_THIRD_PERSON = {"do": "does", "go": "goes", "have": "has"}
# Final consonants double after one short vowel; in longer verbs only where the last syllable is stressed.
_SHORT_VOWEL = re.compile(r"[^aeiou]*[aeiou][^aeiouwxy]")
_STRESSED_LAST = frozenset({"begin", "control", "forget", "outrun", "unwrap", "upset"})
_SILENT_H = frozenset({"hour", "honest"})
_SOUNDED_AS_CONSONANT = frozenset({"uniform", "used"})


def pluralize(noun: str) -> str:
    """The plural of a regular noun."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def article(phrase: str) -> str:
    """The indefinite article that the first word of a phrase asks for, chosen by sound."""
    word = phrase.split()[0].split("-")[0].lower()
    vowel = word in _SILENT_H or (word[0] in "aeiou" and word not in _SOUNDED_AS_CONSONANT)
    return "an" if vowel else "a"


def past(verb: str) -> str:
    """The past tense ("ran away from")."""
    head, space, rest = verb.partition(" ")
    return (_PAST[head][0] if head in _PAST else _with_ed(head)) + space + rest


def past_participle(verb: str) -> str:
    """The past participle ("taken apart")."""
    head, space, rest = verb.partition(" ")
    return (_PAST[head][1] if head in _PAST else _with_ed(head)) + space + rest


def present_participle(verb: str) -> str:
    """The present participle ("running away from")."""
    head, space, rest = verb.partition(" ")
    if head.endswith("ie"):
        stem = head[:-2] + "y"
    elif head.endswith("e") and not head.endswith("ee") and head != "be":
        stem = head[:-1]
    else:
        stem = _double(head)
    return stem + "ing" + space + rest


def third_person(verb: str) -> str:
    """The third person singular of the present tense ("goes into")."""
    head, space, rest = verb.partition(" ")
    return _THIRD_PERSON.get(head, pluralize(head)) + space + rest


def finite(verb: str, tense: str, *, plural: bool, progressive: bool, negation: str = "") -> str:
    """A finite verb with its auxiliaries ("was not chased", "is chasing", "won't chase").

    Args:
        verb: The infinitive; a passive is "be" with a participle ("be chased").
        tense: "past", "present" or "future".
        plural: Whether the subject is plural.
        progressive: Whether a present is under way ("is chasing") rather than simple ("loves").
        negation: "", "not" or "n't".
    """
    head, _, rest = verb.partition(" ")
    if tense == "future":
        auxiliary, main = "will", verb
    elif head == "be" and not (tense == "present" and progressive):
        auxiliary, main = copula(tense, plural=plural), rest
    elif tense == "present" and progressive:
        auxiliary, main = copula(tense, plural=plural), present_participle(verb)
    elif negation:
        auxiliary, main = "did" if tense == "past" else "do" if plural else "does", verb
    else:
        return past(verb) if tense == "past" else verb if plural else third_person(verb)
    if negation == "n't":
        auxiliary = "won't" if auxiliary == "will" else auxiliary + "n't"
    elif negation:
        auxiliary += " not"
    return f"{auxiliary} {main}"


def copula(tense: str, *, plural: bool) -> str:
    """The "to be" of a tense; what will happen is introduced in the present ("it is the chef who will ...")."""
    if tense == "past":
        return "were" if plural else "was"
    return "are" if plural else "is"


def _double(verb: str) -> str:
    return verb + verb[-1] if _SHORT_VOWEL.fullmatch(verb) or verb in _STRESSED_LAST else verb


def _with_ed(verb: str) -> str:
    verb = _double(verb)
    if verb.endswith("y") and verb[-2] not in "aeiou":
        verb = verb[:-1] + "i"
    return verb + ("d" if verb.endswith("e") else "ed")
