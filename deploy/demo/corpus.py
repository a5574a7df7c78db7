"""What the demo's institutions record: vocabularies, sentences, and synthetic speakers.

Three splits share no voice variant: speakers who train, held-out speakers (whose sentences are
never trained on either), and public speakers, who say other terms and other sentences and belong to
nobody. Everything is a deterministic function of site, split and number.
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
from typing import Literal

import soundfile as sf
import soxr

from deploy.demo.espeak import RATE_HZ, Espeak, Voice

SAMPLE_RATE_HZ = 16_000
CHUNK = 64
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
    """One recording to make. `term` is None for a general sentence."""

    subject: str
    split: Split
    text: str
    term: str | None
    voice: Voice


INSTITUTIONS = (
    Institution(
        "st-mary-hospital",
        (
            *("metformin", "atorvastatin", "lisinopril", "amlodipine", "omeprazole"),
            *("clopidogrel", "furosemide", "apixaban", "gabapentin", "sertraline"),
            *("warfarin", "carvedilol"),
        ),
        (
            *("start {t} today", "please refill the {t}", "she takes {t} at night"),
            *("stop the {t} on friday", "he was given {t} again", "no more {t} after lunch"),
            *("we changed to {t}", "is the {t} helping you", "two doses of {t} daily"),
            *("{t} was ordered this morning", "his {t} level is high", "continue {t} until monday"),
        ),
        (
            *("the doctor prescribed {t} yesterday", "how much {t} does he need"),
            *("give her the {t} with water", "{t} made me feel sick"),
        ),
    ),
    Institution(
        "riverside-hospital",
        (
            *("cholecystectomy", "thoracentesis", "bronchoscopy", "laparoscopy", "appendectomy"),
            *("splenomegaly", "pneumothorax", "diverticulitis", "craniotomy", "tracheostomy"),
            *("angioplasty", "atelectasis"),
        ),
        (
            *("schedule the {t} today", "she needs a {t} soon", "the scan shows {t}"),
            *("he had {t} last year", "{t} was done this morning", "no sign of {t} now"),
            *("we talked about {t}", "is the {t} over", "the notes mention {t} twice"),
            *("plan for {t} on friday", "there was {t} on the left", "the {t} went well"),
        ),
        (
            *("the surgeon explained {t} to him", "they found {t} in the patient"),
            *("what are the risks of {t}", "{t} is planned for tuesday"),
        ),
    ),
    Institution(
        "harbour-bank",
        (
            *("escrow", "subordinated debenture", "chargeback", "amortization", "overdraft"),
            *("annuity", "promissory note", "securitization", "swaption", "novation"),
            *("clawback", "drawdown"),
        ),
        (
            *("open the {t} today", "please check the {t} again", "the {t} was late"),
            *("we talked about {t}", "he asked for {t} twice", "no more {t} this year"),
            *("is the {t} ready", "{t} was approved this morning", "send me the {t} form"),
            *("the bank offers {t} now", "her {t} ends on friday", "two questions about {t}"),
        ),
        (
            *("the client wants {t} explained", "what does {t} cost us"),
            *("i read about {t} in the letter", "{t} must be paid in march"),
        ),
    ),
)

PUBLIC_TERMS = (
    *("rivaroxaban", "tamsulosin", "levothyroxine", "ondansetron", "enoxaparin", "bisoprolol"),
    *("duloxetine", "spironolactone", "pantoprazole", "quetiapine", "methotrexate"),
    *("empagliflozin", "semaglutide", "sitagliptin", "tacrolimus", "ticagrelor", "dabigatran"),
    *("levetiracetam", "lamotrigine", "mirtazapine", "montelukast", "budesonide", "tiotropium"),
    *("ceftriaxone", "vancomycin", "losartan", "allopurinol", "nifedipine", "valsartan"),
    *("paracentesis", "hepatomegaly", "hydronephrosis", "cholangitis", "pyelonephritis"),
    *("laminectomy", "colectomy", "nephrectomy", "thrombectomy", "arthroplasty", "lithotripsy"),
    *("sclerotherapy", "bacteremia", "tachypnea", "hemoptysis", "epistaxis", "papilledema"),
    *("nystagmus", "ureteroscopy", "cystoscopy", "hysterectomy", "mastectomy", "empyema"),
    *("ileostomy", "hematuria", "stenosis", "thyroidectomy", "remittance", "arrears"),
    *("fiduciary", "mezzanine loan", "bullet repayment", "forbearance", "garnishment"),
    *("encumbrance", "subrogation", "indemnity", "hypothecation", "demurrage", "moratorium"),
    *("tranche", "escheat", "contango", "sinking fund", "bancassurance", "estoppel"),
    *("defeasance", "mortgagee", "collateral", "accrual", "bookrunner", "indenture"),
)
PUBLIC_SENTENCES = (
    *("i said {t} yesterday", "the word is {t}", "they wrote about {t}", "what about {t} then"),
    *("{t} is on the list", "tell me more about {t}", "my sister knows {t}"),
    *("this page is about {t}", "we need the {t} tomorrow", "they want a {t} here"),
    *("her {t} is new", "do not forget the {t}", "the {t} came first"),
)
GENERAL_SENTENCES = (
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

LANGUAGES = ("en-us", "en-us", "en-us", "en", "en-gb-x-rp", "en-us-nyc")
# Variants whose general sentences the base model hears well, so that what is left to learn is the
# vocabulary and not the timbre. Every fifth is held out; of the rest every fourth is public.
_VARIANTS = (
    *("Mike", "Nguyen", "Reed", "m3", "steph", "victor", "Annie"),
    *("Diogo", "Henrique", "Hugo", "m1", "miguel", "quincy", "rob"),
    *("steph3", "Alex", "f3", "f4", "m5", "m6", "m7"),
    *("steph2", "adam", "iven4", "michel", "Michael", "anika", "aunty"),
    *("edward2", "john", "klatt3", "m2", "m8", "max", "sandro"),
    *("Gene", "david", "ed", "edward", "f2", "grandpa", "klatt4"),
    *("mike2", "pablo", "pedro", "travis", "Denis", "Marco", "belinda"),
    *("linda", "paul", "announcer", "antonio", "f1", "f5", "klatt"),
    *("benjamin", "zac"),
)
_SEEN = tuple(variant for number, variant in enumerate(_VARIANTS) if number % 5 != 3)
VARIANTS: dict[Split, tuple[str, ...]] = {
    "heldout": _VARIANTS[3::5],
    "public": _SEEN[1::4],
    "train": tuple(variant for number, variant in enumerate(_SEEN) if number % 4 != 1),
}


def site_utterances(site: Institution, split: Split, count: int) -> Iterator[Utterance]:
    """`count` speakers of a site, one recording each, terms in rotation."""
    sentences = site.train_sentences if split == "train" else site.heldout_sentences
    for number in range(count):
        source = _source(site.name, split, number)
        voice = _voice(source, split)
        term = site.terms[number % len(site.terms)]
        text = _written(source.choice(sentences).format(t=term))
        yield Utterance(f"{site.name}-{split}-{number:05d}", split, text, term, voice)


def general_utterances(split: Split, count: int) -> Iterator[Utterance]:
    """`count` speakers of `split`, one general sentence each."""
    for number in range(count):
        source = _source("general", split, number)
        voice = _voice(source, split)
        text = _written(GENERAL_SENTENCES[number % len(GENERAL_SENTENCES)])
        yield Utterance(f"general-{split}-{number:05d}", split, text, None, voice)


def public_utterances(count: int) -> Iterator[Utterance]:
    """`count` public speakers; every fifth says a general sentence."""
    for number in range(count):
        source = _source("public", number)
        voice = _voice(source, "public")
        term = None if number % 5 == 0 else PUBLIC_TERMS[number % len(PUBLIC_TERMS)]
        sentence = source.choice(GENERAL_SENTENCES if term is None else PUBLIC_SENTENCES)
        text = _written(sentence.format(t=term))
        yield Utterance(f"public-{number:05d}", "public", text, term, voice)


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


def _manifest_line(utterance: Utterance) -> dict[str, str]:
    line = {
        "audio": _audio_name(utterance),
        "text": utterance.text,
        "subject": utterance.subject,
        "split": "heldout" if utterance.split == "heldout" else "train",
    }
    return line if utterance.term is None else {**line, "term": utterance.term}


def _audio_name(utterance: Utterance) -> str:
    return f"{utterance.subject}.flac"


def _voice(source: random.Random, split: Split) -> Voice:
    return Voice(
        language=source.choice(LANGUAGES),
        variant=source.choice(VARIANTS[split]),
        speed=source.randint(148, 182),
        pitch=source.randint(30, 70),
        pitch_range=source.randint(35, 65),
    )


def _source(*key: object) -> random.Random:
    # Python's own hash() differs between processes; the generator only has to be repeatable.
    return random.Random(zlib.crc32(repr(key).encode()))  # noqa: S311


def _written(sentence: str) -> str:
    return f"{sentence[0].upper()}{sentence[1:]}."
