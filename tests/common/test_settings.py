"""key=value settings: layers, one-line errors that teach, text that stays text."""

import dataclasses
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from omegaconf import MISSING

from common import command_line
from common.command_line import UsageError
from common.settings import OF_ONE


@dataclass(frozen=True)
class Inner:
    """A nested group."""

    rate: float = 0.5
    """A rate per second."""
    size_px: int = 3
    """A size in px."""


@dataclass(frozen=True)
class Settings:
    """All kinds of keys."""

    run: str = MISSING
    """The run's folder."""
    epochs: int = 10
    """How often, and a sentence
    over two lines."""
    names: list[str] = field(default_factory=lambda: ["a", "b"])
    """Some names."""
    amp: Literal["auto", "bf16", "off"] = "auto"
    """A choice, one of them being a word that YAML 1.1 takes for a boolean."""
    fast: bool = False
    """A switch."""
    shape: tuple[int, int] = (2, 3)
    """A height and a width."""
    inner: Inner = field(default_factory=Inner)
    other: Inner = field(default_factory=lambda: Inner(rate=0.25, size_px=7))

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs={self.epochs}: must be at least 1")


@dataclass(frozen=True)
class Several:
    """A command about several runs."""

    runs: list[str] = field(default_factory=list, metadata=OF_ONE)
    """Folders."""


@dataclass(frozen=True)
class Layered:
    """Keys of a command that has presets."""

    preset: str = ""
    """Name of a preset."""
    config: str = ""
    """A file of keys."""
    epochs: int = 10
    """How often."""
    limit: int = 10
    """A limit."""
    tries: int = 10
    """How many tries."""
    amp: Literal["auto", "off"] = "auto"
    """A choice."""
    inner: Inner = field(default_factory=Inner)


def load(*arguments: str) -> Settings:
    return command_line.load(Settings, ["run=r", *arguments])


def test_without_arguments_every_key_has_its_default() -> None:
    assert load() == Settings(run="r")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("CV", ["CV"]),
        ("SWEEP/trial-*", ["SWEEP/trial-*"]),  # as a shell leaves it that finds no runs=SWEEP
        ("*/fold-0", ["*/fold-0"]),  # which YAML would take for an alias
        ("a: b", ["a: b"]),
        ("001", ["001"]),
        ("[a,b]", ["a", "b"]),
        ("['a: b']", ["a: b"]),
    ],
)
def test_a_list_of_runs_may_be_one_name_without_brackets(typed: str, expected: list[str]) -> None:
    assert command_line.load(Several, [f"runs={typed}"]) == Several(runs=expected)


@pytest.mark.parametrize("typed", ["a,b", "", "{a}", "[a", '"a"b'])
def test_what_is_neither_a_name_nor_a_list_is_refused(typed: str) -> None:
    with pytest.raises(UsageError, match=r"^runs=.*\[.*\]$"):
        command_line.load(Several, [f"runs={typed}"])


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("epochs=7", Settings(run="r", epochs=7)),
        ("--epochs=7", Settings(run="r", epochs=7)),
        ("run=001", Settings(run="001")),  # a name stays as it is typed
        ("run=a=b", Settings(run="a=b")),
        ("names=[x,y,z]", Settings(run="r", names=["x", "y", "z"])),
        ("names=[10,010,1_0]", Settings(run="r", names=["10", "010", "1_0"])),
        ("names=[]", Settings(run="r", names=[])),
        ("amp=bf16", Settings(run="r", amp="bf16")),
        ("amp=off", Settings(run="r", amp="off")),
        ("fast=true", Settings(run="r", fast=True)),
        ("fast=off", Settings(run="r", fast=False)),
        ("shape=[4,5]", Settings(run="r", shape=(4, 5))),
        ("inner.rate=1e-4", Settings(run="r", inner=Inner(rate=0.0001))),
        ("inner.rate=2", Settings(run="r", inner=Inner(rate=2.0))),
        ("other.rate=2", Settings(run="r", other=Inner(rate=2.0, size_px=7))),
    ],
)
def test_a_key_is_read_as_its_type(argument: str, expected: Settings) -> None:
    assert load(argument) == expected


def test_the_last_of_two_values_counts() -> None:
    assert load("epochs=7", "epochs=8").epochs == 8


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("epocs=3", ["epocs=3", "Did you mean", "'epochs'"]),
        ("xyzzy=3", ["xyzzy=3: no key 'xyzzy'; --help lists every key."]),
        ("inner.rat=3", ["inner.rat=3", "Did you mean", "'rate'"]),
        ("nothing.like.it=3", ["nothing.like.it=3"]),
        ("inner.rate.x=3", ["inner.rate.x=3: no key 'inner.rate.x'; --help lists every key."]),
        ("names.0=x", ["names.0=x: no key 'names.0'; --help lists every key."]),
        ("epocs=[x", ["epocs=[x: no key 'epocs'", "'epochs'"]),
        ("epochs=abc", ["epochs=abc: expected a whole number"]),
        ("epochs=1.5", ["epochs=1.5: expected a whole number"]),
        ("epochs=", ["epochs=: expected a whole number"]),
        ("epochs=[1", ["epochs=[1: expected a whole number"]),
        ("inner.rate=fast", ["inner.rate=fast: expected a number"]),
        ("inner=3", ["inner=3: a group of keys: inner.rate, inner.size_px"]),
        ("amp=fp8", ["amp=fp8: expected one of auto, bf16, off"]),
        ("fast=perhaps", ["fast=perhaps: expected true or false"]),
        ("names=x", ["names=x", "names=[x]"]),
        ("names=[x", ["names=[x: expected a list like [a,b]"]),
        ("names=[[x]]", ["names=[[x]]: expected a list like [a,b]"]),
        ("names=[x: y]", ["names=[x: y]: put names that hold a colon into quotes: '[\"x: y\"]'"]),
        ("shape=[1,2,3]", ["shape=[1,2,3]: expected a list of 2, each a whole number"]),
        ("shape=[a,b]", ["shape=[a,b]: expected a list of 2, each a whole number"]),
        ("names[0]=x", ["names[0]"]),
        ("epochs", ["'epochs'", "key=value"]),
        ("=3", ["'=3'", "key=value"]),
        ("epochs=0", ["epochs=0", "at least 1"]),
        ("preset=x", ["preset=x"]),  # only where a command has presets
    ],
)
def test_a_refusal_is_one_line_that_names_key_and_value(argument: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load(argument)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_of_several_each_has_a_line() -> None:
    with pytest.raises(UsageError) as caught:
        load("epocs=3", "amp=fp8", "fast=true", "inner.rate=fast", "epochs")
    assert str(caught.value).splitlines() == [
        "4 wrong settings:",
        "  'epochs' is not key=value; --help lists every key",
        "  epocs=3: no key 'epocs'; --help lists every key. Did you mean: 'epochs'?",
        "  amp=fp8: expected one of auto, bf16, off",
        "  inner.rate=fast: expected a number",
    ]


def test_a_missing_key_is_named_as_it_must_be_typed() -> None:
    with pytest.raises(UsageError, match=r"^needs run=\.\.\.; --help lists every key$"):
        command_line.load(Settings, [])


class TestLayers:
    """defaults <- preset <- file <- command line."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "presets").mkdir()
        (tmp_path / "presets/big.yaml").write_text(
            "epochs: 2\nlimit: 2\ntries: 2\ninner: {rate: 2}\n"
        )
        (tmp_path / "presets/small.yaml").write_text("epochs: 1\n")
        (tmp_path / "mine.yaml").write_text("epochs: 3\nlimit: 3\n")
        return tmp_path

    def load(self, folder: Path, *arguments: str) -> Layered:
        filled = [argument.format(folder=folder) for argument in arguments]
        return command_line.load(Layered, filled, preset_folder=folder / "presets")

    def test_each_layer_goes_over_the_one_before_whatever_the_order_typed(
        self, folder: Path
    ) -> None:
        loaded = self.load(folder, "epochs=4", "config={folder}/mine.yaml", "preset=big")
        assert (loaded.epochs, loaded.limit, loaded.tries) == (4, 3, 2)
        assert loaded.inner == Inner(rate=2.0)  # the preset says nothing of size_px

    def test_a_preset_that_a_file_names_counts_unless_another_is_typed(self, folder: Path) -> None:
        (folder / "with.yaml").write_text("preset: big\nlimit: 3\n")
        named = self.load(folder, "config={folder}/with.yaml")
        assert (named.preset, named.epochs, named.limit, named.tries) == ("big", 2, 3, 2)
        typed = self.load(folder, "config={folder}/with.yaml", "preset=small")
        assert (typed.preset, typed.epochs, typed.limit) == ("small", 1, 3)
        (folder / "with.yaml").write_text("preset: bgi\n")
        with pytest.raises(UsageError, match=r"^preset=bgi: no such preset; there are: big, small"):
            self.load(folder, "config={folder}/with.yaml")

    def test_a_configuration_written_as_yaml_is_read_back_the_same(self, folder: Path) -> None:
        settings = Layered(config="old.yaml", amp="off", limit=4, inner=Inner(rate=0.125))
        (folder / "whole.yaml").write_text(command_line.as_yaml(settings))
        file = str(folder / "whole.yaml")
        assert self.load(folder, f"config={file}") == dataclasses.replace(settings, config=file)

    def test_a_wrong_preset_does_not_hide_a_wrong_key(self, folder: Path) -> None:
        with pytest.raises(UsageError, match=r"^2 wrong settings:\n  preset=bgi: .*\n  epocs=3: "):
            self.load(folder, "epocs=3", "preset=bgi")

    def test_every_wrong_key_of_a_file_is_told(self, folder: Path) -> None:
        (folder / "two.yaml").write_text("limit: x\nepocs: 3\n")
        with pytest.raises(UsageError, match=r"^2 wrong settings:\n.*: limit: .*\n.*: epocs: "):
            self.load(folder, "config={folder}/two.yaml")

    @pytest.mark.parametrize(
        ("argument", "words"),
        [
            ("config={folder}/dots.yaml", ["dots.yaml: inner.rate: in a file", "'inner: {rate"]),
            ("config={folder}/nested.yaml", ["nested.yaml: config: another file is not read"]),
            ("preset=bgi", ["preset=bgi", "big, small"]),
            ("config={folder}/no.yaml", ["no.yaml"]),
            ("config={folder}/list.yaml", ["list.yaml", "key: value"]),
            ("config={folder}/broken.yaml", ["broken.yaml"]),
            ("config={folder}/typo.yaml", ["typo.yaml: epocs: no key 'epocs'", "Did you mean"]),
            ("config={folder}/word.yaml", ["word.yaml: inner.rate: expected a number"]),
            ("config={folder}/flat.yaml", ["flat.yaml: inner: a group of keys: inner.rate"]),
        ],
    )
    def test_a_bad_file_is_named_in_one_line(
        self, folder: Path, argument: str, words: list[str]
    ) -> None:
        (folder / "nested.yaml").write_text("config: mine.yaml\n")
        (folder / "list.yaml").write_text("- 1\n")
        (folder / "broken.yaml").write_text("a: [1\n")
        (folder / "typo.yaml").write_text("epocs: 3\n")
        (folder / "word.yaml").write_text("inner: {rate: fast}\n")
        (folder / "flat.yaml").write_text("inner: 3\n")
        (folder / "dots.yaml").write_text("inner.rate: 3\n")
        with pytest.raises(UsageError) as caught:
            self.load(folder, argument)
        assert all(word in str(caught.value) for word in words), caught.value
        assert "\n" not in str(caught.value)


SECRET = "t0p-secret"
HOSTILE = "a${oc.env:SECRET}b"


@dataclass(frozen=True)
class Texts:
    """Every kind of place that text may stand in."""

    text: str = ""
    """A text."""
    listed: list[str] = field(default_factory=list)
    """Some texts."""
    named: dict[str, str] = field(default_factory=dict)
    """Texts by name."""
    inner: Inner = field(default_factory=Inner)
    epochs: int = 1
    """A number."""
    amp: Literal["auto", "off"] = "auto"
    """A choice."""
    config: str = ""
    """A file of keys."""


class TestTextIsData:
    """Nothing that is typed or read is an expression, whoever wrote it."""

    @pytest.fixture(autouse=True)
    def secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET", SECRET)

    @pytest.mark.parametrize("text", [HOSTILE, "${", "${epochs}", r"\${epochs}", "$${a}}", "???"])
    def test_a_typed_text_stays_as_it_is(self, text: str) -> None:
        assert command_line.load(Settings, [f"run={text}"]).run == text
        assert load(f"names=['{text}',b]").names == [text, "b"]

    @pytest.mark.parametrize(
        "key", ["epochs", "amp", "fast", "names", "shape", "inner", "inner.rate", "nosuch"]
    )
    def test_where_no_text_is_taken_it_is_refused_unresolved(self, key: str) -> None:
        for text in ("${oc.env:SECRET}", "${run}"):
            with pytest.raises(UsageError) as caught:
                load(f"{key}={text}")
            assert str(caught.value).startswith(f"{key}={text}: ")
            assert SECRET not in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("epochs", HOSTILE),
            ("amp", HOSTILE),
            ("text", [HOSTILE]),
            ("listed", "${oc.env:SECRET}"),  # OmegaConf resolves its own escape of these twice
            ("named", "${oc.env:SECRET}"),
            ("inner", "${oc.env:SECRET}"),
            ("inner", {"rate": HOSTILE}),
            ("${oc.env:SECRET}", "a"),
        ],
    )
    def test_a_file_with_it_in_another_place_is_refused(self, key: str, value: object) -> None:
        with pytest.raises(UsageError) as caught:
            command_line.from_values(Texts, {key: value})
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_text_comes_back_the_same_through_a_configuration_and_a_file(
        self, tmp_path: Path
    ) -> None:
        """Of 500 random texts out of what OmegaConf and YAML take for signs."""
        rng, file = random.Random(0), tmp_path / "config.yaml"
        signs = [
            *"$${{}}\\\\?:#&*!|>%@`'\"-[], \n\t\0\x85aé中",
            "${",
            "}",
            "???",
            "oc.env:SECRET",
            "null",
        ]

        def text() -> str:
            return "".join(rng.choices(signs, k=rng.randrange(12)))

        for _ in range(125):
            values = {"text": text(), "listed": [text()], "named": {"A": text(), text(): text()}}
            config = command_line.from_values(Texts, values)
            assert {key: getattr(config, key) for key in values} == values
            file.write_text(command_line.as_yaml(config))
            assert command_line.from_values(Texts, command_line.read_yaml(file)) == config

    def test_an_alias_is_refused_before_it_grows(self, tmp_path: Path) -> None:
        """Each list holds the one before nine times: 9 ** 30 texts of 30 lines."""
        lines = ["a: &a0 [x]"]
        lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
        self.refused(tmp_path, "\n".join(lines), "*a0 is an alias")

    @pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
    def test_deep_nesting_is_refused(self, tmp_path: Path, opening: str) -> None:
        self.refused(tmp_path, f"a:\n {opening * 5000}", "nested more than 20 deep")
        with pytest.raises(UsageError, match=r"^names=.*: expected a list like \[a,b\]$"):
            load(f"names={'[' * 5000}")

    def test_a_huge_file_is_refused(self, tmp_path: Path) -> None:
        self.refused(tmp_path, f"text: {'x' * 10**6}", "larger than 1000000 bytes")

    def refused(self, folder: Path, content: str, words: str) -> None:
        path = folder / "hostile.yaml"
        path.write_text(content)
        with pytest.raises(UsageError) as caught:
            command_line.load(Texts, [f"config={path}"], preset_folder=folder)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
