"""Fetches the pinned packages that the starter is built from, each with the client of its registry, into a cache."""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CLIENTS = {
    "apt": ("apt-get", "it comes with Debian, whose release 12 has these versions; run `apt-get update` once before"),
    "npm": ("npm", "install Node.js, which brings it"),
}


@dataclass(frozen=True)
class Package:
    """One version of one package, and the file and sha256 that its client downloads."""

    client: str
    name: str
    version: str
    file: str
    sha256: str
    licence: str
    about: str

    @property
    def command(self) -> list[str]:
        if self.client == "apt":
            return ["apt-get", "download", f"{self.name}={self.version}"]
        return ["npm", "pack", f"{self.name}@{self.version}"]


def _debian(name: str, version: str, sha256: str, licence: str, about: str) -> Package:
    return Package("apt", name, version, f"{name}_{version.replace(':', '%3a')}_all.deb", sha256, licence, about)


def _npm(name: str, version: str, sha256: str, licence: str, about: str) -> Package:
    file = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    return Package("npm", name, version, file, sha256, licence, about)


STAMPS = _debian(
    "tuxpaint-stamps-default", "2022.06.04-1", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    "GPL-2.0-or-later", "Tux Paint stamps: pictures, captions, spoken captions and sounds, by the Tux Paint team",
)  # fmt: skip
NAMES = _debian(
    "iso-codes", "4.15.0-1", "b1beb869303229c38288d4ddacfd582c91f594759b5767c9cecebd87f16ff70e",
    "LGPL-2.1-or-later", "names of countries, languages, currencies and scripts, by the iso-codes team",
)  # fmt: skip
CITIES = _debian(
    "libgweather-4-common", "4.2.0-2", "a2576a67753b924d717598d041c393eb5c802ebd9d67261b1995aafe2bcbc9ce",
    "GPL-2.0-or-later", "names of cities, by the GNOME project and its translators",
)  # fmt: skip
WORDS = _debian(
    "wordnet-base", "1:3.0-37", "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    "WordNet-3.0", "WordNet, whose examples a synthesizer says; copyright 2006 by Princeton University",
)  # fmt: skip
_PROMPTS = {  # language: (licence, sha256 of the recordings, sha256 of the transcripts)
    "en": ("CC-BY-SA-3.0", "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
           "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"),
    "es": ("CC-BY-SA-3.0", "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8",
           "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74"),
    "fr": ("CC-BY-SA-3.0", "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0",
           "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056"),
    "it": ("CC-BY-3.0", "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016",
           "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b"),
    "ru": ("CC-BY-3.0", "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b",
           "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab"),
}  # fmt: skip
_ABOUT = "Asterisk core sounds: telephone prompts and their transcripts, by Digium/Sangoma and its voices"
PROMPTS = {
    language: (
        _debian(f"asterisk-core-sounds-{language}-g722", "1.6.1-1", recordings, licence, _ABOUT),
        _debian(f"asterisk-core-sounds-{language}", "1.6.1-1", transcripts, licence, _ABOUT),
    )
    for language, (licence, recordings, transcripts) in _PROMPTS.items()
}
STYLES = {
    "twemoji": _npm("@iconify-json/twemoji", "1.2.5",
                    "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
                    "CC-BY-4.0", "Twitter Emoji, by Twitter"),
    "noto": _npm("@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
                 "Apache-2.0", "Noto Emoji, by Google"),
    "openmoji": _npm("@iconify-json/openmoji", "1.2.29",
                     "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
                     "CC-BY-SA-4.0", "OpenMoji, by the OpenMoji project"),
    "emojione": _npm("@iconify-json/emojione", "1.2.3",
                     "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
                     "CC-BY-4.0", "Emoji One (coloured), by Emoji One"),
    "notov1": _npm("@iconify-json/noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
                   "Apache-2.0", "Noto Emoji (first version), by Google"),
    "emojionev1": _npm("@iconify-json/emojione-v1", "1.2.3",
                       "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
                       "CC-BY-SA-4.0", "Emoji One (first version), by Emoji One"),
    "fxemoji": _npm("@iconify-json/fxemoji", "1.2.2",
                    "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
                    "Apache-2.0", "Firefox OS Emoji, by Mozilla"),
}  # fmt: skip
MORE_STYLES = {
    "fluent": _npm("@iconify-json/fluent-emoji", "1.2.7",
                   "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
                   "MIT", "Fluent Emoji, by Microsoft"),
    "fluentflat": _npm("@iconify-json/fluent-emoji-flat", "1.2.6",
                       "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
                       "MIT", "Fluent Emoji Flat, by Microsoft"),
    "fluentcontrast": _npm("@iconify-json/fluent-emoji-high-contrast", "1.2.6",
                           "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
                           "MIT", "Fluent Emoji High Contrast, by Microsoft"),
    "emojionemono": _npm("@iconify-json/emojione-monotone", "1.2.1",
                         "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e",
                         "CC-BY-4.0", "Emoji One (monotone), by Emoji One"),
    "streamline": _npm("@iconify-json/streamline-emojis", "1.2.4",
                       "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
                       "CC-BY-4.0", "Streamline Emojis, by Streamline"),
}  # fmt: skip
ANNOTATIONS = {
    "annotations": _npm("cldr-annotations-full", "48.2.0",
                        "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
                        "Unicode-3.0", "names of emoji in many languages, by Unicode"),
    "annotationsDerived": _npm("cldr-annotations-derived-full", "48.2.0",
                               "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
                               "Unicode-3.0", "names of combined emoji in many languages, by Unicode"),
}  # fmt: skip
PACKAGES = [STAMPS, NAMES, CITIES, WORDS, *(p for pair in PROMPTS.values() for p in pair),
            *STYLES.values(), *MORE_STYLES.values(), *ANNOTATIONS.values()]  # fmt: skip


def _cause(said: str) -> str:
    """The line of a client's messages that says what is wrong: behind it npm names a log, apt further errors."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith(("E:", "npm error", "npm ERR!"))]
    return (wrong or lines[-1:] or ["no message"])[0]


def fetch(package: Package, cache: Path) -> Path:
    """The package's file, downloaded into `cache` unless it is there. ValueError: no client, no file, other bytes."""
    path = cache / package.file
    if not path.exists():
        program, hint = CLIENTS[package.client]
        if shutil.which(program) is None:
            raise ValueError(f"{package.file} must be downloaded with {program}, which is not installed: {hint}")
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(package.command, check=False, cwd=cache, capture_output=True, text=True)
        if done.returncode or not path.exists():
            raise ValueError(
                f"`{' '.join(package.command)}` failed ({_cause(done.stderr)}): run it by hand in {cache}, then build "
                f"again ({program}: {hint})"
            )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        path.unlink()
        raise ValueError(
            f"{path} has sha256 {digest}, not {package.sha256}: it is removed, build again to download it anew"
        )
    return path
