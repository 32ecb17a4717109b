"""`ttr generate`: rows that stand side by side do not know of each other, events and texts as a user gets them, bad calls."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.fast.conftest import START, edited_copy
from tests.ref.cases import lively_model
from ttr_fast import cli
from ttr_fast.commands.options import ModelOptions
from ttr_fast.commands.prompts import date_prefix, prompt_time
from ttr_fast.data.sources.times import EXPECTED_ANY
from ttr_fast.data.text_tokenizer import TextTokenizer
from ttr_fast.errors import UserError
from ttr_fast.generation.decode import Past, continue_sequences
from ttr_fast.generation.distribution import Sampling
from ttr_fast.generation.sample import Event, EventSampler, TokenSampler, row_generator
from ttr_fast.generation.turns import Turns
from ttr_fast.model import Backend, BackendName, load_backend
from ttr_fast.training.checkpoint import CheckpointConfig, TextSource, save_checkpoint
from ttr_ref.config import TimeConfig, TrainConfig
from ttr_ref.model import model_forward
from ttr_ref.timeline import timeline_from_lengths

TIME = TimeConfig(origin=START, unit=600.0, shortest=60.0, span=1e6, resolution=60.0, tick_seconds=1.0)
OPTIONS = ModelOptions(embed_dim=24, hidden_dim=20, heads=2, window=7, components=3)
CONFIG = OPTIONS.config(11, TIME)
PARAMS = lively_model(CONFIG, 0)
BACKENDS: tuple[BackendName, ...] = ("cpu", "reference")


def past(name: str, length: int, seed: int = 0, sample: int = 0) -> Past:
    """A history of its own for each name."""
    rng = np.random.default_rng([length, *name.encode()])
    tokens, times = rng.integers(0, CONFIG.vocab_size, length), START + np.cumsum(rng.integers(0, 50_000, length))
    return Past(tokens, times, row_generator(seed, name, sample))


def continued(backend: Backend, pasts: list[Past], counts: list[int], texts: bool = False) -> list[list[Event]]:
    """So many events of each row."""
    sampler, found = (TokenSampler if texts else EventSampler)(PARAMS, CONFIG, Sampling(1.5)), [list[Event]() for _ in pasts]
    for row, event in continue_sequences(backend, PARAMS, CONFIG, pasts, sampler, lambda row, _: len(found[row]) + 1 == counts[row]):
        found[row].append(event)
    return found


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=8)
@given(rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.integers(1, 12)), min_size=2, max_size=5), texts=st.booleans())
def test_a_row_is_what_it_is_alone(name: BackendName, rows: list[tuple[str, int, int]], texts: bool) -> None:
    """Histories of different lengths, ends at different times, more events than the window holds: equal tokens, and times to the second."""
    backend, counts = load_backend(name), [count for *_, count in rows]

    def pasts() -> list[Past]:
        return [past(who, length, sample=i) for i, (who, length, _) in enumerate(rows)]

    together = continued(backend, pasts(), counts, texts)
    assert [len(events) for events in together] == counts
    for row, (one, count) in enumerate(zip(pasts(), counts, strict=True)):
        assert continued(backend, [one], [count], texts)[0] == together[row]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_state_has_the_same_bits_in_a_batch(name: BackendName) -> None:
    """What is drawn hides the last bits of a state, so these are compared too."""
    backend, rng = load_backend(name), np.random.default_rng(0)
    tokens, times = rng.integers(0, CONFIG.vocab_size, (20, 6)), START + np.cumsum(rng.integers(0, 9000, (20, 6)), 0)

    def states(which: slice) -> np.ndarray:
        state, z = backend.decode_start(PARAMS, CONFIG, tokens[:, which].shape[1], np.int64), []
        for n in range(20):
            one, state = backend.decode(state, tokens[n, which], times[n, which], CONFIG)
            z.append(one.copy())
        return np.stack(z)

    together = states(slice(None))
    for row in (0, 3, 5):
        assert states(slice(row, row + 1)).tobytes() == np.ascontiguousarray(together[:, row : row + 1]).tobytes()


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_drawn_follows_the_whole_past(name: BackendName) -> None:
    """Each state that is drawn from is that of the windowed forward pass over the past and all that was drawn since, in rows of any lengths."""
    rng, pasts = np.random.default_rng(1), [past("a", 1), past("b", 12), past("c", 5)]
    states, events = [list[np.ndarray]() for _ in pasts], [list[Event]() for _ in pasts]

    def sampler(z: np.ndarray, last: Event, rng_of_row: np.random.Generator) -> Event:
        (row,) = [row for row, one in enumerate(pasts) if one.rng is rng_of_row]
        assert last == (events[row][-1] if events[row] else Event(pasts[row].tokens[-1], pasts[row].times[-1]))
        states[row].append(z.copy())
        return Event(int(rng.integers(0, CONFIG.vocab_size)), last.time + int(rng.integers(0, 5000)))

    for row, event in continue_sequences(load_backend(name), PARAMS, CONFIG, pasts, sampler, lambda row, _: len(events[row]) == 9):
        events[row].append(event)
    for one, drawn, found in zip(pasts, events, states, strict=True):
        tokens = np.concatenate([one.tokens, [e.token for e in drawn]])[None, :-1]
        times = np.concatenate([one.times, [e.time for e in drawn]])[None, :-1]
        z, _ = model_forward(PARAMS, tokens, timeline_from_lengths(times, np.array([times.size])), CONFIG)
        # one state and the next differ by about 1; float32's sums of a few dozen terms through two blocks do not by a thousandth of it
        np.testing.assert_allclose(np.stack(found), z[0, one.tokens.size - 1 :], atol=1e-3)


def test_a_continuation_equals_one_that_is_fed_back() -> None:
    """Having drawn three events and being told five are the same as being told eight, drawing from the same numbers."""
    backend = load_backend("reference")
    start = past("a", 5)
    (events,) = continued(backend, [start], [3])
    rng = row_generator(0, "a", 0)
    (first,) = continued(backend, [past("a", 5)._replace(rng=rng)], [2])
    tokens = np.concatenate([start.tokens, [e.token for e in first]])
    times = np.concatenate([start.times, [e.time for e in first]])
    (rest,) = continued(backend, [Past(tokens, times, rng)], [1])
    assert first + rest == events


def test_turns(capsys: pytest.CaptureFixture[str]) -> None:
    """The first row as it grows, the others when it is their turn."""
    turns, said = Turns(3), []
    for row, text, last in ((0, "a", False), (1, "x", False), (2, "p", True), (0, "b", False), (1, "y", True), (0, "c", True)):
        turns.write(row, text, last)
        said.append(capsys.readouterr().out)
    assert said == ["a", "", "", "b", "", "cxyp"]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    cli.run(["generate", *map(str, arguments)])
    return capsys.readouterr().out


def objects(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_several_entities_at_once(run_folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same as one by one, samples too, in the order asked for; a name that comes again goes on with another sample."""
    call = run_folder / "checkpoint", "--data", corpus, "--events", "4", "--json"
    together = objects(printed(capsys, *call, "--entity", "e05", "e03", "--samples", "2"))
    assert [(e["entity"], e["sample"]) for e in together] == [("e05", 0)] * 4 + [("e05", 1)] * 4 + [("e03", 0)] * 4 + [("e03", 1)] * 4
    alone = [e for name in ("e05", "e03") for e in objects(printed(capsys, *call, "--entity", name, "--samples", "2"))]
    assert together == alone
    assert objects(printed(capsys, *call, "--entity", "e03", "e03")) == together[8:]
    assert together[8]["time"] != together[12]["time"]


def test_events_end_after_a_stop(run_folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = run_folder / "checkpoint", "--data", corpus, "--entity", "e03", "e04", "--json", "--stop", "b"
    assert [(e["entity"], e["token"]) for e in objects(printed(capsys, *call))] == [("e03", "a"), ("e03", "b"), ("e04", "a"), ("e04", "b")]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts that has learned nothing: any token may come."""
    tokenizer = TextTokenizer.train(["User: où? Assistant: là</s>"] * 3, 270, ["User:", "Assistant:"])
    config = ModelOptions(embed_dim=8, hidden_dim=8, heads=2, window=8, next_time=False).config(tokenizer.size, TIME)
    params = lively_model(config, 1)
    folder = tmp_path_factory.mktemp("chat") / "checkpoint"
    save_checkpoint(folder, params, CheckpointConfig(config, TrainConfig(), TextSource("s"), (), 0), tokenizer=tokenizer)
    return folder


NOW = "--at", "2023-11-14T22:13:20Z"


def test_texts(chat: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On the terminal and as JSON, from the command line and from a file, alone and in a batch of different lengths."""
    text = printed(capsys, chat, "--prompt", "User: où?", *NOW, "--tokens", "30")
    assert text.startswith("User: où?")
    (one,) = objects(printed(capsys, chat, "--prompt", "User: où?", *NOW, "--tokens", "30", "--json"))
    assert text == f"User: où?{one['text']}\n"
    assert (one["tokens"] == 30) == (one["ended_by"] == "tokens")

    (tmp_path / "prompts").write_text("User: où?\nA\fB\n")
    both = objects(printed(capsys, chat, "--prompt", "là Assistant:", "--prompt-file", tmp_path / "prompts", *NOW, "--tokens", "30", "--json"))
    assert [r["prompt"] for r in both] == ["là Assistant:", "User: où?", "A\fB"]
    assert both[1] == one
    shown = printed(capsys, chat, "--prompt", "là Assistant:", "User: où?", *NOW, "--tokens", "30")
    assert shown == f"[1/2] là Assistant:{both[0]['text']}\n[2/2] User: où?{one['text']}\n"


def test_the_time_of_a_text_matters(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All its tokens have it: as ISO 8601, as UNIX time, and now, which is another."""
    call = chat, "--prompt", "User: ", "--tokens", "40", "--json"
    at = printed(capsys, *call, *NOW)
    assert printed(capsys, *call, "--at", str(START)) == at
    assert printed(capsys, *call, "--at", str(START + 400_000)) != at
    assert printed(capsys, *call) != at


def test_texts_end_before_a_stop(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any character of what comes without stops will do as one."""
    call = chat, "--prompt", "User: ", "--tokens", "40", "--json", *NOW
    (free,) = objects(printed(capsys, *call))
    stop = free["text"][5]
    (stopped,) = objects(printed(capsys, *call, "--stop", stop, "no such thing"))
    assert (stopped["text"], stopped["ended_by"]) == (free["text"][: free["text"].index(stop)], "stop")
    assert stopped["tokens"] < free["tokens"]


def test_sampling_options_reach_the_sampler(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One token left is the likeliest, whichever way it is left."""
    call = chat, "--prompt", "User: ", "--tokens", "20", "--json", *NOW
    greedy = printed(capsys, *call, "--temperature", "0")
    for only in (("--top-k", "1"), ("--top-p", "1e-9"), ("--min-p", "1")):
        assert printed(capsys, *call, *only) == greedy
    assert printed(capsys, *call) != greedy
    assert printed(capsys, *call, "--seed", "1") != printed(capsys, *call)


def test_a_prompt_that_is_not_utf8(chat: Path) -> None:
    assert refused(chat, "--prompt", "\udcff") == "--prompt is not UTF-8, expected a text to continue"


def test_times_of_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
    date = "2023-11-14T22:13:20.5Z"
    assert [prompt_time(at, "s") for at in (None, date, "17e8", "1700000000")] == [1_700_000_000, 1_700_000_000.5, 1_700_000_000.0, 1_700_000_000]
    assert [prompt_time(at, "ms") for at in (None, date, "1700000000001")] == [1_700_000_000_500, 1_700_000_000_500, 1_700_000_000_001]
    assert [prompt_time(str(START * 10**9 + 1), unit) for unit in ("ns", "us")] == [START * 10**9 + 1, START * 10**6 + 0.001]
    assert isinstance(prompt_time(date, "ns"), int)
    assert prompt_time(date, "iso8601") == 1_700_000_000.5
    assert prompt_time(None, None) == 0
    with pytest.raises(UserError, match=r"^--at: time '2300-01-01T00:00:00Z' in ns, the unit of this model, is beyond int64$"):
        prompt_time("2300-01-01T00:00:00Z", "ns")
    assert [date_prefix(*of) for of in ((START, "s"), (START * 1000.0 + 1, "ms"), (0, None))] == ["<2023-11-14T22:13:20Z>"] * 2 + [""]


def test_texts_begin_with_their_date(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless told otherwise, and without being shown."""
    with_date, without = (
        objects(printed(capsys, chat, "--prompt", prompt, *NOW, *options, "--tokens", "20", "--json", "--temperature", "0"))[0]["text"]
        for prompt, options in (("User: ", ()), ("<2023-11-14T22:13:20Z>User: ", ("--no-prefix",)))
    )
    assert with_date == without
    assert printed(capsys, chat, "--prompt", "User: ", *NOW, "--tokens", "1").startswith("User: ")


def refused(*arguments: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        cli.run(["generate", *map(str, arguments)])
    return str(caught.value)


BadCalls = list[tuple[list[str], str]]
OF_EVENTS: BadCalls = [
    ([], "nothing to continue: name a file of events with --data and whose to continue with --entity"),
    (["--data", "CORPUS"], "nothing to continue: name a file of events with --data and whose to continue with --entity"),
    (["--entity", "e03"], "nothing to continue: name a file of events with --data and whose to continue with --entity"),
    (["--data", "CORPUS", "--entity", "e03", "nobody"], "CORPUS: column 'who' has no 'nobody'"),
    (["--data", "CORPUS", "--entity", "e03", "--stop", "c"], "--stop 'c' is unknown, expected one of the 2 tokens in the model's vocabulary"),
    (["--prompt", "x"], "CHECKPOINT is a model of events: --prompt is for models of texts; give it --data and --entity"),
    (["--prompt-file", "x"], "CHECKPOINT is a model of events: --prompt-file is for models of texts; give it --data and --entity"),
    (["--tokens", "3"], "CHECKPOINT is a model of events: --tokens is for models of texts; give it --data and --entity"),
    (["--events", "0"], "--events must be at least 1, got 0"),
    (["--samples", "0"], "--samples must be at least 1, got 0"),
    (["--seed", "-1"], "--seed must not be negative, got -1"),
    (["--top-p", "0"], "--top-p must be above 0 and at most 1, got 0.0"),
]
OF_TEXTS: BadCalls = [
    ([], "nothing to continue: give a text with --prompt, or a file with one a line with --prompt-file"),
    (["--entity", "e03"], "CHECKPOINT is a model of texts: --entity is for models of events; give it --prompt or --prompt-file"),
    (["--sort", "--prompt", "x"], "CHECKPOINT is a model of texts: --sort is for models of events; give it --prompt or --prompt-file"),
    (["--prompt", ""], "--prompt is empty, expected a text to continue"),
    (["--prompt", "x", "--stop", ""], "--stop is an empty text, expected one that ends the continuation"),
    (["--prompt", "x", "--at", "soon"], f"--at: time 'soon' is neither a number nor a date, expected {EXPECTED_ANY}"),
    (["--prompt", "x", "--at", "2024-05-01"], "--at: time '2024-05-01' has no zone, expected ISO 8601 with a zone such as 2023-11-14T22:13:20Z"),
    (["--prompt", "x", "--tokens", "0"], "--tokens must be at least 1, got 0"),
    (["--prompt-file", "FOLDER/none"], "FOLDER/none: there is no such file, expected one with a prompt a line"),
    (["--prompt-file", "FOLDER/empty"], "nothing to continue: give a text with --prompt, or a file with one a line with --prompt-file"),
    (["--prompt-file", "FOLDER/gap"], "FOLDER/gap:2: the line is empty, expected a text to continue"),
    (["--prompt-file", "FOLDER/latin"], "FOLDER/latin: byte 2 is not UTF-8, expected text with a prompt a line"),
]


def call_name(value: list[str] | str) -> str:
    return " ".join(value) or "nothing" if isinstance(value, list) else "is told"


@pytest.mark.parametrize("arguments, sentence", OF_EVENTS, ids=call_name)
def test_bad_calls_for_events(arguments: list[str], sentence: str, run_folder: Path, corpus: Path) -> None:
    checkpoint = str(run_folder / "checkpoint")
    call = [a.replace("CORPUS", str(corpus)) for a in arguments]
    assert refused(checkpoint, *call).replace(checkpoint, "CHECKPOINT").replace(str(corpus), "CORPUS") == sentence


@pytest.mark.parametrize("arguments, sentence", OF_TEXTS, ids=call_name)
def test_bad_calls_for_texts(arguments: list[str], sentence: str, chat: Path, tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("gap", b"a\n\nb\n"), ("latin", b"a\xe9b")):
        (tmp_path / name).write_bytes(content)
    call = [a.replace("FOLDER", str(tmp_path)) for a in arguments]
    assert refused(chat, *call).replace(str(chat), "CHECKPOINT").replace(str(tmp_path), "FOLDER") == sentence


def test_texts_without_times(chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited_copy(chat, tmp_path, lambda config: json.dumps(json.loads(config) | {"source": {"kind": "texts", "time_unit": None}}))
    (first,) = objects(printed(capsys, tmp_path, "--prompt", "x", "--tokens", "5", "--json"))
    assert first["tokens"] <= 5
    assert refused(tmp_path, "--prompt", "x", *NOW) == "this model was trained on texts without times, so there is no --at"


@pytest.mark.parametrize("texts", [False, True])
def test_a_model_without_a_window(texts: bool, run_folder: Path, corpus: Path, chat: Path, tmp_path: Path) -> None:
    edited_copy(chat if texts else run_folder / "checkpoint", tmp_path, lambda config: re.sub(r'"window": 8', '"window": null', config))
    call = ["--prompt", "x"] if texts else ["--data", str(corpus), "--entity", "e03"]
    sentence = "this model sees everything before (--model.window None); decoding with a ring buffer needs a window"
    assert refused(tmp_path, *call) == sentence
