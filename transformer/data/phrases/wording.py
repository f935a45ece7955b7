"""English, German and French words for numbers, dates, times of day, money, measures, countries, languages and a few
nouns, for the generated phrases. Names and units come from the CLDR (through Babel), most number words from num2words.
The tables here add the genders, articles and prepositions that these lack.

Every `say_*(value, language, form, words)` returns the text of a value. With `words`, numbers are spelt out, else they
are figures. `form` is a grammatical form of the given language; "" is the form that `templates.TEMPLATES` needs most.
"""

from __future__ import annotations

import datetime
from functools import cache

import babel
from babel.numbers import get_currency_name, get_currency_symbol
from babel.units import format_unit
from num2words import num2words

LOCALES = {language: babel.Locale(language) for language in ("en", "de", "fr")}
THOUSANDS = {"en": ",", "de": ".", "fr": " "}  # French: a plain space, as people type it; the CLDR has U+202F
POINT = {"en": ".", "de": ",", "fr": ","}
POINT_WORD = {"en": "point", "de": "Komma", "fr": "virgule"}
VOWELS = tuple("aeiouéèêœAEIOUÉ")  # before these, French has l' and d'

# English: singular and plural. German and French: gender, singular and plural.
NOUN_ROWS = """
book books | n Buch Bücher | m livre livres
apple apples | m Apfel Äpfel | f pomme pommes
letter letters | m Brief Briefe | f lettre lettres
bottle bottles | f Flasche Flaschen | f bouteille bouteilles
key keys | m Schlüssel Schlüssel | f clé clés
lamp lamps | f Lampe Lampen | f lampe lampes
cup cups | f Tasse Tassen | f tasse tasses
plate plates | m Teller Teller | f assiette assiettes
shirt shirts | n Hemd Hemden | f chemise chemises
stamp stamps | f Briefmarke Briefmarken | m timbre timbres
coin coins | f Münze Münzen | f pièce pièces
flower flowers | f Blume Blumen | f fleur fleurs
chair chairs | m Stuhl Stühle | f chaise chaises
photo photos | n Foto Fotos | f photo photos
bag bags | f Tasche Taschen | m sac sacs
hat hats | m Hut Hüte | m chapeau chapeaux
knife knives | n Messer Messer | m couteau couteaux
spoon spoons | m Löffel Löffel | f cuillère cuillères
egg eggs | n Ei Eier | m œuf œufs
candle candles | f Kerze Kerzen | f bougie bougies
pencil pencils | m Bleistift Bleistifte | m crayon crayons
ring rings | m Ring Ringe | f bague bagues
ball balls | m Ball Bälle | m ballon ballons
umbrella umbrellas | m Regenschirm Regenschirme | m parapluie parapluies
newspaper newspapers | f Zeitung Zeitungen | m journal journaux
cake cakes | m Kuchen Kuchen | m gâteau gâteaux
"""
NOUNS = {
    language: [("", *row.split(" | ")[column].split())[-3:] for row in NOUN_ROWS.strip().split("\n")]
    for column, language in enumerate(LOCALES)
}
FOOD = (  # French: with "de"
    {"en": "flour", "de": "Mehl", "fr": "de farine"},
    {"en": "sugar", "de": "Zucker", "fr": "de sucre"},
    {"en": "rice", "de": "Reis", "fr": "de riz"},
    {"en": "butter", "de": "Butter", "fr": "de beurre"},
    {"en": "cheese", "de": "Käse", "fr": "de fromage"},
    {"en": "meat", "de": "Fleisch", "fr": "de viande"},
)
DRINKS = (
    {"en": "water", "de": "Wasser", "fr": "d'eau"},
    {"en": "milk", "de": "Milch", "fr": "de lait"},
    {"en": "tea", "de": "Tee", "fr": "de thé"},
    {"en": "orange juice", "de": "Orangensaft", "fr": "de jus d'orange"},
)
NAMES = {"f": ("Anna", "Emma", "Julia", "Laura", "Sarah"), "m": ("Daniel", "David", "Martin", "Paul", "Thomas")}
PRONOUNS = {"f": {"en": "she", "de": "sie", "fr": "elle"}, "m": {"en": "he", "de": "er", "fr": "il"}}
ARTICLES = {"en": {"": "the"}, "de": {"m": "der", "f": "die", "n": "das"}, "fr": {"m": "le", "f": "la"}}
GERMAN_ONE = {  # before a noun; "" is the accusative
    "": {"m": "einen", "f": "eine", "n": "ein"},
    "dat": {"m": "einem", "f": "einer", "n": "einem"},
}
# Countries by gender in German ("n": without article) and in French ("island": without article, and with "à").
GERMAN_COUNTRIES = {
    "n": "AL AR AT AU BE BG BO BR CA CL CN CO CU CY CZ DE DK DZ EC EE EG ES ET FI FR GH GR HR HU ID IE IN IS IT JO JP"
    " KE KR KZ LT LU LV MA MG MX NG NO NP NZ PE PL PT RO RS SE SI TH TN UY VE VN ZA",
    "f": "CH MN SK UA",
    "m": "IQ IR",
    "pl": "NL PH US",
}
FRENCH_COUNTRIES = {
    "f": "AL AR AT AU BE BG BO CH CN CO CZ DE DZ EE EG ES ET FI FR GR HR HU ID IE IN IS IT JO KR LT LV MN NO NZ PL"
    " RO RS SE SI SK TH TN UA ZA",
    "m": "BR CA CL DK EC GH IQ IR JP KE KZ LU MA MX NG NP PE PT UY VE VN",
    "pl": "NL PH US",
    "island": "CU CY MG",
}
COUNTRY_GENDER = {
    language: {code: gender for gender, codes in table.items() for code in codes.split()}
    for language, table in (("de", GERMAN_COUNTRIES), ("fr", FRENCH_COUNTRIES))
}
COUNTRIES = sorted(COUNTRY_GENDER["de"])
PREPOSITIONS = {
    "de": {
        "n": {"acc": "", "in": "in ", "to": "nach ", "from": "aus "},
        "f": {"acc": "die ", "in": "in der ", "to": "in die ", "from": "aus der "},
        "m": {"acc": "den ", "in": "im ", "to": "in den ", "from": "aus dem "},
        "pl": {"acc": "die ", "in": "in den ", "to": "in die ", "from": "aus den "},
    },
    "fr": {
        "f": {"the": "la ", "in": "en ", "from": "de "},
        "m": {"the": "le ", "in": "au ", "from": "du "},
        "vowel": {"the": "l'", "in": "en ", "from": "d'"},
        "pl": {"the": "les ", "in": "aux ", "from": "des "},
        "island": {"the": "", "in": "à ", "from": "de "},
    },
}
LANGUAGE_CODES = (
    "ar bg ca cs cy da de el en es et eu fa fi fr ga hr hu hy id is it ja ka ko lt lv ms nl no pl pt ro ru sk sl sq sr"
    " sv tr uk vi zh"
)
LANGUAGES = LANGUAGE_CODES.split()
DURATIONS = {  # gender in German, then in French
    "second": "ff", "minute": "ff", "hour": "ff", "day": "mm", "week": "ff", "month": "mm", "year": "nm",
}  # fmt: skip
CURRENCIES = {  # gender in French
    "EUR": "m", "USD": "m", "CHF": "m", "GBP": "f", "JPY": "m", "CAD": "m", "DKK": "f", "SEK": "f", "PLN": "m",
    "CZK": "f", "INR": "f", "MXN": "m",
}  # fmt: skip
CENTS = {  # other currencies have whole amounts only
    "EUR": {"en": "cents", "de": "Cent", "fr": "centimes"},
    "USD": {"en": "cents", "de": "Cent", "fr": "cents"},
    "CHF": {"en": "rappen", "de": "Rappen", "fr": "centimes"},
    "GBP": {"en": "pence", "de": "Pence", "fr": "pence"},
}
PERIODS = {  # parts of the day, for the hours that the twelve-hour clock can have
    range(1, 11): {"en": "in the morning", "de": "morgens", "fr": "du matin"},
    range(13, 18): {"en": "in the afternoon", "de": "nachmittags", "fr": "de l'après-midi"},
    range(18, 23): {"en": "in the evening", "de": "abends", "fr": "du soir"},
}
PERIOD = {hour: names for hours, names in PERIODS.items() for hour in hours}


# ---- how to say it


@cache
def _below_1000(language: str) -> list[str]:
    return [num2words(n, lang=language) for n in range(1000)]


def cardinal(language: str, n: int) -> str:
    """The number 0 <= n < 1,000,000 in words, as in counting: "eins", "quatre-vingts", without commas in English."""
    small = _below_1000(language)
    thousands, rest = divmod(n, 1000)
    if not thousands:
        return small[n]
    if language == "en":
        head, link = small[thousands] + " thousand", " and " if rest < 100 else " "
    elif language == "de":  # num2words has "einundzwanzigtausend", but also the wrong "zweihunderteinstausend"
        head, link = (small[thousands].removesuffix("s") if thousands % 10 == 1 else small[thousands]) + "tausend", ""
    else:
        head, link = "mille" if thousands == 1 else _without_s(small[thousands]) + " mille", " "
    return head + link + small[rest] if rest else head


def _without_s(french: str) -> str:
    """Remove the plural -s of cent and vingt ("deux cents"): there is none before a number word, in years, pages ..."""
    return french[:-1] if french.endswith(("cents", "vingts")) else french


def say_number(n: int, language: str, form: str = "", words: bool = True) -> str:
    """A cardinal number. Form "f": the French feminine ("vingt et une")."""
    if not words:
        return f"{n:,}".replace(",", THOUSANDS[language])
    text = cardinal(language, n)
    return text + "e" if language == "fr" and form == "f" and text.endswith("un") else text


def say_label(n: int, language: str, form: str, words: bool) -> str:
    """The number of a page, room or bus."""
    text = say_number(n, language, "", words)
    return _without_s(text) if language == "fr" else text


def _decimal(hundredths: int, language: str, words: bool) -> str:
    whole, rest = divmod(hundredths, 100)
    if not rest:
        return say_number(whole, language, "", words)
    digits = f"{rest:02}".rstrip("0")
    if not words:
        return say_number(whole, language, "", False) + POINT[language] + digits
    if language == "fr" and rest >= 10:  # "virgule vingt-cinq", but "virgule zéro cinq"
        digits = [digits]
    return " ".join([cardinal(language, whole), POINT_WORD[language], *(cardinal(language, int(d)) for d in digits)])


@cache
def say_ordinal(n: int, language: str, form: str, words: bool) -> str:
    """An ordinal number. Form: the German ending, or the French gender."""
    if language == "fr" and n == 1:
        return ("première" if words else "1re") if form == "f" else ("premier" if words else "1er")
    if words:
        text = num2words(n, lang=language, to="ordinal").replace("vingtsième", "vingtième")  # corrects num2words at 80
        return text + form.removeprefix("e") if language == "de" else text
    return num2words(n, lang="en", to="ordinal_num") if language == "en" else f"{n}." if language == "de" else f"{n}e"


@cache
def say_year(year: int, language: str, form: str, words: bool) -> str:
    if not words:
        return str(year)
    return _without_s(cardinal("fr", year)) if language == "fr" else num2words(year, lang=language, to="year")


def _counted(n: int, noun: tuple[str, str, str], language: str, form: str, words: bool) -> str:
    """A number n with its noun (gender, singular, plural). Form "dat": the German dative; else the accusative."""
    gender, singular, plural = noun
    name = singular if n == 1 else plural
    if form == "dat" and n > 1 and name[-1] not in "ns":
        name += "n"
    if language == "de" and n == 1 and words:
        return f"{GERMAN_ONE[form][gender]} {name}"
    return f"{say_number(n, language, gender, words)} {name}"


def say_who(value: tuple[str, str | None], language: str, form: str, words: bool) -> str:
    gender, name = value
    return ("e" if gender == "f" else "") if form else name or PRONOUNS[gender][language]


def say_item(noun: int, language: str, form: str, words: bool) -> str:
    gender, name, _ = NOUNS[language][noun]
    if language == "fr" and name.startswith(VOWELS):
        return f"l'{name}"
    article = "den" if (gender, form) == ("m", "acc") else ARTICLES[language][gender]
    return f"{article} {name}"


def say_food(food: int, language: str, form: str, words: bool) -> str:
    return FOOD[food][language]


def say_drink(drink: int, language: str, form: str, words: bool) -> str:
    return DRINKS[drink][language]


@cache
def say_country(code: str, language: str, form: str, words: bool) -> str:
    name = LOCALES[language].territories[code]
    if language == "en":
        return f"the {name}" if code in ("NL", "PH", "US") else name
    gender = COUNTRY_GENDER[language][code]
    if language == "de" and gender == "pl":
        name = name.replace("Vereinigte ", "Vereinigten ")
        name += "n" if form in ("in", "from") and name.endswith("e") else ""
    if language == "fr" and gender in ("f", "m") and name.startswith(VOWELS):
        gender = "vowel"
    return PREPOSITIONS[language][gender][form] + name


@cache
def say_language(code: str, language: str, form: str, words: bool) -> str:
    name = LOCALES[language].languages[code]
    if language == "fr" and form:
        vowel = name.startswith(VOWELS)
        return {"the": "l'" if vowel else "le ", "from": "de l'" if vowel else "du "}[form] + name
    return name + form  # German: aus dem Deutschen, ins Deutsche


def say_things(value: tuple[int, int], language: str, form: str, words: bool) -> str:
    return _counted(value[0], NOUNS[language][value[1]], language, form, words)


@cache
def _unit(unit: str, language: str, count: int) -> str:
    return format_unit(count, unit, locale=language)[1:].strip().replace("\xa0", " ")


def say_duration(value: tuple[int, str], language: str, form: str, words: bool) -> str:
    n, unit = value
    gender = {"en": "", **dict(zip(("de", "fr"), DURATIONS[unit], strict=True))}[language]
    noun = gender, _unit(f"duration-{unit}", language, 1), _unit(f"duration-{unit}", language, 2)
    return _counted(n, noun, language, form, words)


def say_measure(value: tuple[int, str], language: str, form: str, words: bool) -> str:
    n, unit = value
    number = _decimal(n, language, words)
    if unit == "concentr-percent" and not words:
        return f"{number}%" if language == "en" else f"{number} %"
    return f"{number} {_unit(unit, language, 1 if language == 'fr' and n < 200 else 2)}"


@cache
def _currency(currency: str, language: str) -> tuple[str, str, str]:
    gender = CURRENCIES[currency] if language == "fr" else "m"
    singular, plural = (get_currency_name(currency, count, locale=language) for count in (1, 2))
    if language == "de" and plural.split()[0].endswith("e"):  # an adjective: "britische Pfund"
        plural = plural[0].lower() + plural[1:]
    return gender, singular, plural


def say_money(value: tuple[int, str], language: str, form: str, words: bool) -> str:
    n, currency = value
    whole, cents = divmod(n, 100)
    if words:
        text = _counted(whole, _currency(currency, language), language, form, True)
        link = {"en": "and", "de": "und", "fr": "et"}[language]
        return f"{text} {link} {cardinal(language, cents)} {CENTS[currency][language]}" if cents else text
    number = say_number(whole, language, "", False) + (f"{POINT[language]}{cents:02}" if cents else "")
    symbol = get_currency_symbol(currency, language)
    return f"{number} {symbol}" if language != "en" else symbol + " " * symbol.isalpha() + number


def say_date(value: tuple[datetime.date, bool], language: str, form: str, words: bool, year: bool = True) -> str:
    """A date; value: (date, whether to write it as 03/14/2024). Form: the German ending of the day; "" = the dative."""
    date, slashes = value
    if slashes:
        return date.strftime({"en": "%m/%d/%Y", "de": "%d.%m.%Y", "fr": "%d/%m/%Y"}[language])
    month = say_month(date.month, language)
    if language == "fr" and date.day > 1:
        text = f"{say_number(date.day, 'fr', 'label', words)} {month}"
    else:
        nth = say_ordinal(date.day, language, form or "en", words)
        text = f"the {nth} of {month}" if language == "en" and words else f"{nth} {month}"
        if language == "en" and not words:
            text = f"{month} {nth}"
    return f"{text}{',' * (language == 'en')} {say_year(date.year, language, '', words)}" if year else text


def say_full_date(value: tuple[datetime.date, bool], language: str, form: str, words: bool) -> str:
    """A date with its weekday."""
    weekday = say_weekday(value[0].weekday(), language)
    return weekday + {"en": ", ", "de": ", dem ", "fr": " "}[language] + say_date(value, language, form, words)


def say_day(value: tuple[datetime.date, bool], language: str, form: str, words: bool) -> str:
    """A date without its year."""
    return say_date(value, language, form, words, year=False)


def say_weekday(day: int, language: str, form: str = "", words: bool = True) -> str:
    return LOCALES[language].days["format"]["wide"][day]


def say_month(month: int, language: str, form: str = "", words: bool = True) -> str:
    return LOCALES[language].months["format"]["wide"][month]


def say_time(value: tuple[int, int, bool], language: str, form: str, words: bool) -> str:
    """A time; value: (hour 0-23, minute, whether to write it as "a quarter to eight in the evening")."""
    hour, minute, colloquial = value
    if colloquial:
        return _colloquial(hour, minute, language)
    if language == "en":
        twelve, half = (hour - 1) % 12 + 1, "am" if hour < 12 else "pm"
        if not words:
            return f"{twelve}:{minute:02} {half}" if minute else f"{twelve} {half}"
        minutes = ("oh-" if minute < 10 else "") + cardinal("en", minute) + " " if minute else ""
        return f"{cardinal('en', twelve)} {minutes}{half}"
    if language == "de":
        if not words:
            return f"{hour}:{minute:02} Uhr" if minute else f"{hour} Uhr"
        return _hour(hour, "de") + (f" {cardinal('de', minute)}" if minute else "")
    if not words:
        return f"{hour} h {minute:02}" if minute else f"{hour} h"
    return _hour(hour, "fr") + (f" {say_number(minute, 'fr', 'f')}" if minute else "")


def _hour(hour: int, language: str) -> str:
    if language == "de":
        return ("ein" if hour == 1 else cardinal("de", hour)) + " Uhr"
    return say_number(hour, "fr", "f") + (" heure" if hour < 2 else " heures")


@cache
def _colloquial(hour: int, minute: int, language: str) -> str:
    """A time on the twelve-hour clock, with the part of the day. The minute is a multiple of five."""
    now, following = (hour - 1) % 12 + 1, hour % 12 + 1
    before = 60 - minute
    if language == "en":
        this, following = cardinal("en", now), cardinal("en", following)
        text = (
            f"{this} o'clock" if minute == 0
            else f"half past {this}" if minute == 30
            else f"{'a quarter' if minute == 15 else cardinal('en', minute)} past {this}" if minute < 30
            else f"{'a quarter' if minute == 45 else cardinal('en', before)} to {following}"
        )  # fmt: skip
    elif language == "de":
        this, following = cardinal("de", now), cardinal("de", following)
        text = (
            _hour(now, "de") if minute == 0
            else f"halb {following}" if minute == 30
            else f"fünf {'vor' if minute == 25 else 'nach'} halb {following}" if minute in (25, 35)
            else f"{'Viertel' if minute == 15 else cardinal('de', minute)} nach {this}" if minute < 30
            else f"{'Viertel' if minute == 45 else cardinal('de', before)} vor {following}"
        )  # fmt: skip
    else:
        this, following = _hour(now, "fr"), _hour(following, "fr")
        named = {0: "", 15: " et quart", 30: " et demie"}
        text = (
            this + named[minute] if minute in named
            else f"{this} {cardinal('fr', minute)}" if minute < 30
            else f"{following} moins {'le quart' if minute == 45 else cardinal('fr', before)}"
        )  # fmt: skip
    return f"{text} {PERIOD[hour][language]}"
