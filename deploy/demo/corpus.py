"""What the demo's institutions record: vocabularies, sentences, and synthetic speakers.

Three splits share no voice variant: speakers who train, held-out speakers (whose sentences are
never trained on either), and public speakers, who say other terms and other sentences and belong to
no site. Everything is a deterministic function of site, split and number.
"""

from __future__ import annotations

import dataclasses
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import soundfile as sf
import soxr

from deploy.demo.espeak import RATE_HZ, Espeak, Voice

SAMPLE_RATE_HZ = 16_000
CHUNK = 64
QUESTION_WORDS = frozenset({"is", "what", "how", "can", "do"})
Split = Literal["train", "heldout", "public"]


@dataclasses.dataclass(frozen=True)
class Institution:
    """One site: its name, its vocabulary, and the sentences its people say."""

    name: str
    terms: tuple[str, ...]
    train_sentences: tuple[str, ...]
    heldout_sentences: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One recording to make, and the terms said in it (none in a general sentence)."""

    subject: str
    split: Split
    text: str
    terms: tuple[str, ...]
    voice: Voice


INSTITUTIONS = (
    Institution(
        "st-mary-hospital",
        (
            *("metformin", "lisinopril", "omeprazole", "furosemide", "apixaban", "gabapentin"),
            *("warfarin", "carvedilol"),
        ),
        (
            *("start {t} today", "please refill the {t}", "she takes {t} at night"),
            *("stop the {t} on friday", "he was given {t} again", "no more {t} after lunch"),
            *("we changed to {t}", "two doses of {t} daily", "continue {t} until monday"),
            *("is she taking {t} now",),
        ),
        (
            *("the doctor prescribed {t} yesterday", "give her the {t} with water"),
            *("you can take {t} with food", "the nurse forgot his {t}"),
        ),
    ),
    Institution(
        "riverside-hospital",
        (
            *("thoracentesis", "bronchoscopy", "laparoscopy", "appendectomy", "craniotomy"),
            *("tracheostomy", "angioplasty", "atelectasis"),
        ),
        (
            *("schedule the {t} today", "she needs a {t} soon", "the scan shows {t}"),
            *("he had {t} last year", "no sign of {t} now", "we talked about {t}"),
            *("the notes mention {t} twice", "plan for {t} on friday"),
            *("there was {t} on the left", "she asked for {t} again"),
        ),
        (
            *("the surgeon explained {t} to him", "they found {t} in the patient"),
            *("her {t} is planned for tuesday", "the team discussed {t} at noon"),
        ),
    ),
    Institution(
        "harbour-bank",
        (
            *("escrow", "chargeback", "amortization", "overdraft", "annuity", "securitization"),
            *("swaption", "novation"),
        ),
        (
            *("open the {t} today", "please check the {t} again", "we talked about {t}"),
            *("he asked for {t} twice", "no more {t} this year", "send me the {t} form"),
            *("the bank offers {t} now", "two questions about {t}", "she needs the {t} soon"),
            *("explain the {t} on friday",),
        ),
        (
            *("the client wants {t} explained", "i read about {t} in the letter"),
            *("the {t} must be paid in march", "our branch handles {t} every day"),
        ),
    ),
)

PUBLIC_TERMS = (
    *("atorvastatin", "amlodipine", "rivaroxaban", "clopidogrel", "tamsulosin", "levothyroxine"),
    *("ondansetron", "enoxaparin", "bisoprolol", "duloxetine", "spironolactone", "pantoprazole"),
    *("quetiapine", "methotrexate", "empagliflozin", "semaglutide", "sitagliptin"),
    *("dapagliflozin", "adalimumab", "pembrolizumab", "tacrolimus", "ticagrelor", "dabigatran"),
    *("levetiracetam", "lamotrigine", "mirtazapine", "escitalopram", "venlafaxine"),
    *("montelukast", "salbutamol", "budesonide", "tiotropium", "piperacillin", "ceftriaxone"),
    *("vancomycin", "sertraline", "losartan", "allopurinol", "nifedipine", "valsartan"),
    *("cholecystectomy", "paracentesis", "pericardiocentesis", "splenomegaly", "hepatomegaly"),
    *("hydronephrosis", "pneumothorax", "diverticulitis", "cholangitis", "pyelonephritis"),
    *("laminectomy", "colectomy", "nephrectomy", "thrombectomy", "endarterectomy"),
    *("arthroplasty", "lithotripsy", "sclerotherapy", "bacteremia", "tachypnea", "dyspnea"),
    *("hemoptysis", "epistaxis", "ascites", "petechiae", "papilledema", "nystagmus"),
    *("dysarthria", "ureteroscopy", "cystoscopy", "hysterectomy", "mastectomy", "pleurodesis"),
    *("empyema", "ileostomy", "colostomy", "osteotomy", "hematuria", "stenosis", "thyroidectomy"),
    *("debenture", "subordinated debenture", "remittance", "arrears", "fiduciary"),
    *("promissory note", "mezzanine loan", "bullet repayment", "forbearance", "garnishment"),
    *("lien", "encumbrance", "subrogation", "indemnity", "hypothecation", "demurrage"),
    *("moratorium", "tranche", "clawback", "escheat", "contango", "nostro account"),
    *("vostro account", "sinking fund", "bancassurance", "rehypothecation", "estoppel"),
    *("defeasance", "mortgagee", "drawdown", "collateral", "accrual", "bookrunner", "usufruct"),
    *("acceptor", "cheque guarantee", "direct debit", "standing order", "indenture"),
)
PUBLIC_SENTENCES = (
    *("i said {t} yesterday", "the words are {t}", "they wrote about {t}", "what about {t} then"),
    *("tell me more about {t}", "my sister knows {t}", "this page is about {t}"),
    *("we need the {t} tomorrow", "they want {t} here", "her {t} is new"),
    *("do not forget the {t}", "he spoke of {t} for an hour"),
)
HELDOUT_GENERAL = (
    *("the meeting will start on monday morning", "please call the office before nine"),
    *("she walked to the station with her brother", "we need seven more chairs in the room"),
    *("he will send the letter on tuesday", "the weather was cold and very wet"),
    *("my neighbour is waiting outside", "can you help me find the keys"),
    *("the train leaves at eight today", "they bought six apples and some bread"),
    *("her sister lives near the river", "i will see you on thursday"),
    *("turn left after the second bridge", "the children played in the garden"),
    *("do you have ten minutes", "this road is closed until saturday"),
    *("your mother left a message", "the dinner was better than last time"),
    *("please wait for the next agent", "press two to leave a message"),
)

# General sentences that one in five of those who train says, so that learning the terms does not
# cost the rest.
TRAIN_GENERAL = (
    *("we open the doors at half past eight", "his car is parked behind the house"),
    *("please sign both copies of the form", "the phone rang twice this afternoon"),
    *("i left my coat on the chair", "there is a small shop on the corner"),
    *("they will arrive before dinner", "you may sit down and wait here"),
    *("the lights went out for an hour", "my cousin works in another city"),
    *("bring a glass of water please", "the answer was on the last page"),
    *("we have five letters for you", "nobody was in the kitchen last night"),
    *("she wrote her name on the box", "the bus stops in front of the school"),
    *("take the second door on the right", "he reads the paper every morning"),
    *("thank you for waiting so long", "the window in the hall is broken"),
    *("your order will be here tomorrow", "it was a quiet evening by the sea"),
    *("call me when you are ready", "the new table is too large"),
    *("we walked home in the rain", "someone forgot a bag in the train"),
    *("please speak after the tone", "all lines are busy at the moment"),
    *("that number is not in service", "enter the number again and press one"),
    *("the garden needs water in july", "we met them at the market"),
)
GENERAL_EVERY = 5

LANGUAGES = ("en-us", "en-us", "en-us", "en", "en-gb-x-rp", "en-us-nyc")
# Variants whose general sentences the base model hears with a word error rate of at most 20 %, so
# that what is left to learn is the vocabulary and not the timbre.
VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("Mike", "Nguyen", "victor", "Annie", "Hugo", "m1", "miguel", "Alex", "f3", "m6", "m7"),
        *("steph2", "Michael", "anika", "john", "klatt3", "m2", "Gene", "david", "f2", "grandpa"),
        *("klatt4", "travis", "Denis", "linda", "paul"),
    ),
    "heldout": (*("Reed", "Diogo", "quincy", "f4", "adam", "aunty", "m8", "ed", "mike2", "Marco"),),
    "public": (
        *("m3", "Henrique", "rob", "m5", "iven4", "edward2", "max", "edward", "pablo", "belinda"),
    ),
}


def site_utterances(site: Institution, split: Split, count: int) -> Iterator[Utterance]:
    """`count` speakers of a site, one recording each, terms in rotation.

    Of those who train, one in five says a general sentence and the others name two terms; of the
    held-out every other names one.
    """
    sentences = site.train_sentences if split == "train" else site.heldout_sentences
    for number in range(count):
        source = _source(site.name, split, number)
        voice = _voice(source, split)
        if split == "train" and number % GENERAL_EVERY == GENERAL_EVERY - 1:
            text = _written(source.choice(TRAIN_GENERAL))
            yield Utterance(f"{site.name}-{split}-{number:05d}", split, text, (), voice)
            continue
        at = number % len(site.terms)
        other = (at + 1 + source.randrange(len(site.terms) - 1)) % len(site.terms)
        both = split == "train" or number % 2 == 1
        terms = (site.terms[at], site.terms[other]) if both else (site.terms[at],)
        text = _written(source.choice(sentences).format(t=_said(source, terms)))
        yield Utterance(f"{site.name}-{split}-{number:05d}", split, text, terms, voice)


def general_utterances(count: int) -> Iterator[Utterance]:
    """`count` held-out speakers, one general sentence each that nobody trains on."""
    split: Split = "heldout"
    for number in range(count):
        source = _source("general", split, number)
        voice = _voice(source, split)
        text = _written(HELDOUT_GENERAL[number % len(HELDOUT_GENERAL)])
        yield Utterance(f"general-{split}-{number:05d}", split, text, (), voice)


def public_utterances(count: int) -> Iterator[Utterance]:
    """`count` public speakers, two public terms each."""
    for number in range(count):
        source = _source("public", number)
        voice = _voice(source, "public")
        terms = (PUBLIC_TERMS[number % len(PUBLIC_TERMS)], source.choice(PUBLIC_TERMS))
        text = _written(source.choice(PUBLIC_SENTENCES).format(t=_said(source, terms)))
        yield Utterance(f"public-{number:05d}", "public", text, terms, voice)


def synthesise(utterances: Sequence[Utterance], folder: Path, workers: int) -> Iterator[int]:
    """Write every utterance as 16 kHz FLAC with `manifest.jsonl`; yields how many are done.

    Audio that is already there is kept. The manifest comes last: where it is, all is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [utterances[start : start + CHUNK] for start in range(0, len(utterances), CHUNK)]
    done = 0
    # A fresh interpreter a worker: libespeak-ng keeps global state.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for count in pool.map(_speak, chunks, [folder] * len(chunks)):
            done += count
            yield done
    lines = [json.dumps(_manifest_line(utterance)) + "\n" for utterance in utterances]
    scratch = folder / "manifest.partial"
    scratch.write_text("".join(lines), encoding="utf-8")
    scratch.replace(folder / "manifest.jsonl")


def _speak(utterances: Sequence[Utterance], folder: Path) -> int:
    espeak = _espeak()
    for utterance in utterances:
        path = folder / _audio_name(utterance)
        if path.exists():
            continue
        samples = soxr.resample(
            espeak.say(utterance.text, utterance.voice), RATE_HZ, SAMPLE_RATE_HZ
        )
        scratch = path.with_suffix(".partial")
        sf.write(scratch, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
        scratch.replace(path)
    return len(utterances)


_SPEAKER: list[Espeak] = []  # one a worker process; starting the library twice is not allowed


def _espeak() -> Espeak:
    if not _SPEAKER:
        _SPEAKER.append(Espeak())
    return _SPEAKER[0]


def _manifest_line(utterance: Utterance) -> dict[str, Any]:
    return {
        "audio": _audio_name(utterance),
        "text": utterance.text,
        "subject": utterance.subject,
        "split": "heldout" if utterance.split == "heldout" else "train",
        "terms": utterance.terms,
    }


def _audio_name(utterance: Utterance) -> str:
    return f"{utterance.subject}.flac"


def _voice(source: random.Random, split: Split) -> Voice:
    return Voice(
        language=source.choice(LANGUAGES),
        variant=source.choice(VARIANTS[split]),
        speed=source.randint(148, 178),
        pitch=source.randint(30, 70),
        pitch_range=source.randint(35, 65),
    )


def _said(source: random.Random, terms: Sequence[str]) -> str:
    return f" {source.choice(('and', 'or'))} ".join(terms)


def _source(*key: object) -> random.Random:
    # Python's own hash() differs between processes; the generator only has to be repeatable.
    return random.Random(zlib.crc32(repr(key).encode()))  # noqa: S311


def _written(sentence: str) -> str:
    asks = sentence.split(maxsplit=1)[0] in QUESTION_WORDS
    return f"{sentence[0].upper()}{sentence[1:]}{'?' if asks else '.'}"
