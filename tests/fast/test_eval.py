"""What is measured of a model, against brute force; calibration of a model on what it wrote itself; `ttr eval` as a user calls it."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests.fast.conftest import START
from tests.ref.cases import lively_model
from ttr_fast import cli
from ttr_fast.commands.eval import model_row
from ttr_fast.commands.options import ModelOptions
from ttr_fast.data.corpus import Fields, FileEntry, Index, split_entry, write_index
from ttr_fast.data.sequences import EventSequences
from ttr_fast.data.shards import write_shard
from ttr_fast.data.text_tokenizer import TextTokenizer
from ttr_fast.errors import UserError
from ttr_fast.generation.decode import Past, continue_sequences
from ttr_fast.generation.distribution import Sampling
from ttr_fast.generation.sample import Event, EventSampler, row_generator
from ttr_fast.model import BackendName, load_backend
from ttr_fast.training.baselines import bigram_nats, log_normal_baseline, majority_nats
from ttr_fast.training.calibration import distance_from_uniform, histogram, pit, reliability
from ttr_fast.training.checkpoint import CheckpointConfig, EventSource, TextSource, save_checkpoint
from ttr_fast.training.evaluation import evaluate
from ttr_fast.training.scores import Scores, scores
from ttr_ref.config import ModelConfig, TimeConfig, TimeHeadConfig, TimeHeadOrder, TrainConfig
from ttr_ref.model import ModelParams, model_forward
from ttr_ref.time_head import Mixture, mixture_cdf
from ttr_ref.timeline import timeline_from_lengths

TIME = TimeConfig(origin=START, unit=600.0, shortest=60.0, span=1e6, resolution=1.0, tick_seconds=1.0)
CONFIG = ModelOptions(embed_dim=24, hidden_dim=20, heads=2, window=7, components=3).config(7, TIME)
PARAMS = lively_model(CONFIG, 0)
DISTANCE = 2.23
"""Kolmogorov's distance of n uniform numbers is below this over √n with probability 0.9999."""


def sequences(seed: int, lengths: list[int]) -> EventSequences:
    rng, n = np.random.default_rng(seed), sum(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = START + np.cumsum(rng.integers(0, 20_000, n))
    tokens = rng.integers(0, 7, n).astype(np.int32)
    return EventSequences(tuple(f"e{i}" for i in range(len(lengths))), tokens, times, offsets, tuple("abcdefg"))


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_scores_by_brute_force(name: BackendName) -> None:
    """Each event's logits from the oracle, sorted in Python. Nothing here is so close that float32 might order it otherwise."""
    config = replace(CONFIG, time_head=None)
    params, events = PARAMS._replace(time_head=None), sequences(0, [9, 2, 1, 14])
    ranks, nats, top, hits = [], [], [], []
    for i in (0, 1, 3):
        tokens, times = events.sequence(i)
        z, _ = model_forward(params, tokens[None, :-1], timeline_from_lengths(times[None, :-1], np.array([tokens.size - 1])), config)
        for logits, target in zip(z[0] @ params.embedding.T, tokens[1:], strict=True):
            p = np.exp(logits) / np.exp(logits).sum()
            ranks.append(1 + int((p > p[target]).sum()))
            nats.append(-math.log(p[target]))
            top.append(p.max())
            hits.append(ranks[-1] == 1)
    (found,) = scores(load_backend(name), params, events, config)
    n, eps = len(ranks), 1e-4  # float32's roundings over sums of some dozens, times logits of some units
    assert (found.targets, found.time, found.order) == (n, None, "token_then_time")
    assert found.accuracy == sum(hits) / n
    assert found.top_5 == sum(rank <= 5 for rank in ranks) / n
    assert found.mean_reciprocal_rank == pytest.approx(sum(1 / rank for rank in ranks) / n, rel=1e-12)
    assert found.token_nats == pytest.approx(sum(nats) / n, abs=eps)
    step = [min(int(10 * p), 9) for p in top]
    for k in range(10):
        inside = [i for i in range(n) if step[i] == k]
        assert found.reliability.predictions[k] == len(inside)
        if inside:
            assert found.reliability.accuracy[k] == pytest.approx(sum(hits[i] for i in inside) / len(inside))
            assert found.reliability.confidence[k] == pytest.approx(sum(top[i] for i in inside) / len(inside), abs=eps)
    used = [k for k in range(10) if k in step]
    error = sum(abs(sum(hits[i] - top[i] for i in range(n) if step[i] == k)) for k in used) / n
    assert found.reliability.error() == pytest.approx(error, abs=eps)


def test_scores_agree_with_what_training_measures() -> None:
    """The same means and medians."""
    events = sequences(1, [30, 5, 11])
    for backend in (load_backend("cpu"), load_backend("reference")):
        for mine, theirs in zip(scores(backend, PARAMS, events, CONFIG), evaluate(backend, PARAMS, events, CONFIG, with_errors=True), strict=True):
            assert mine.time is not None
            assert mine.order == theirs.order
            assert (mine.time.nats, mine.time.median_error) == pytest.approx((theirs.time_nats, theirs.median_time_error), rel=1e-12)
            assert mine.token_nats == pytest.approx(theirs.token_nats, rel=1e-12)


def test_nothing_to_predict() -> None:
    with pytest.raises(ValueError, match="nothing to predict"):
        scores(load_backend("reference"), PARAMS, sequences(0, [1, 1]), CONFIG)


def mixtures(n: int, seed: int) -> tuple[Mixture, np.ndarray]:
    """n different mixtures, and a gap of each."""
    rng = np.random.default_rng(seed)
    weight = rng.dirichlet(np.ones(3), n)
    mixture = Mixture(np.log(weight), rng.uniform(-1, 8, (n, 3)), rng.uniform(0.1, 2, (n, 3)))
    m = (rng.random((n, 1)) > np.cumsum(weight, 1)).sum(1).clip(max=2)
    return mixture, np.exp(mixture.mu[np.arange(n), m] + mixture.sigma[np.arange(n), m] * rng.standard_normal(n))


@pytest.mark.parametrize("tick", [None, 1.0, 60.0])
def test_the_pit_of_the_right_distribution_is_uniform(tick: float | None) -> None:
    """Also of times in coarse ticks, many of them gaps of zero; of the wrong distribution it is not."""
    n = 5000
    mixture, gap = mixtures(n, 1)
    recorded = gap if tick is None else np.round(gap / tick) * tick
    values = pit(mixture, recorded, tick, np.random.default_rng(2))
    assert distance_from_uniform(values) < DISTANCE / math.sqrt(n)
    assert histogram(values).sum() == pytest.approx(1)
    late = mixture._replace(mu=mixture.mu + 0.3)
    assert distance_from_uniform(pit(late, recorded, tick, np.random.default_rng(2))) > 2 * DISTANCE / math.sqrt(n)
    if tick is None:
        np.testing.assert_array_equal(values, mixture_cdf(mixture, gap))


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_distance_by_definition(values: list[float]) -> None:
    """sup over x of |share of values ≤ x − x| is reached at a value or just before it."""
    n = len(values)
    candidates = [abs(sum(v <= x for v in values) / n - x) for x in values] + [abs(sum(v < x for v in values) / n - x) for x in values]
    assert distance_from_uniform(np.array(values)) == pytest.approx(max(candidates), abs=1e-12)


def test_reliability_by_hand() -> None:
    found = reliability(np.array([0.05, 0.05, 1.0, 0.95]), np.array([True, False, True, True]))
    assert found.predictions.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert found.accuracy[[0, 9]].tolist() == [0.5, 1.0]
    assert np.isnan(found.accuracy[1])
    assert found.error() == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)


def written_by(config: ModelConfig, params: ModelParams, rows: int, count: int) -> EventSequences:
    """Sequences that a model went on with, from one event each."""
    pasts = [Past(np.array([row % 7]), np.array([START + 60 * row]), row_generator(0, str(row), 0)) for row in range(rows)]
    lines = [[Event(past.tokens[0].item(), past.times[0].item())] for past in pasts]
    sampler = EventSampler(params, config, Sampling())
    for row, event in continue_sequences(load_backend("cpu"), params, config, pasts, sampler, lambda row, _: len(lines[row]) == count):
        lines[row].append(event)
    tokens, times = (np.array([event[k] for line in lines for event in line]) for k in (0, 1))
    offsets = np.arange(rows + 1) * (count + 1)
    return EventSequences(tuple(map(str, range(rows))), tokens.astype(np.int32), times, offsets, tuple("abcdefg"))


@pytest.mark.parametrize("order", ["token_then_time", "time_then_token"])
def test_a_model_is_calibrated_on_what_it_wrote(order: TimeHeadOrder) -> None:
    """Given the past, each gap's PIT is uniform and the likeliest token comes as often as it says: sampling and scoring are of one distribution.

    Hits minus confidence have mean 0 and at most variance ¼, so their mean is within 3.9 · ½ / √n with probability 0.9999. Drawn gaps are of one
    second at least, which moves what the mixtures have below half a second: less than 0.002 with medians from ten minutes on.
    """
    config = replace(CONFIG, time_head=TimeHeadConfig(3, order))
    params = lively_model(config, 3)
    assert params.time_head is not None
    head = params.time_head.mixture
    params = params._replace(time_head=params.time_head._replace(mixture=head._replace(b_mixture=np.array([0, 0, 0, 6.4, 8, 10, 0, 0.3, 0.5]))))
    events = written_by(config, params, 40, 60)
    (found,) = scores(load_backend("cpu"), params, events, config)
    n = 40 * 60
    assert found.targets == n
    assert found.time is not None
    assert found.time.pit_distance < DISTANCE / math.sqrt(n) + 0.002
    filled = found.reliability.predictions > 0
    confidence = (found.reliability.predictions * found.reliability.confidence)[filled].sum() / n
    assert abs(found.accuracy - confidence) < 3.9 * 0.5 / math.sqrt(n)
    assert confidence > 0.3, "or it would say nothing"


def test_units_of_time() -> None:
    """Nats of a density per hour, errors in hours: those of a density per second less ln 3600; times in milliseconds give the same."""
    source = EventSource("who", "when", ("what",), "s")
    found = scores(load_backend("reference"), PARAMS, sequences(1, [30]), CONFIG)[0]
    assert found.time is not None
    rows = []
    for tick in (1.0, 1e-3):
        config = replace(CONFIG, block=replace(CONFIG.block, time=replace(TIME, tick_seconds=tick)))
        time = found.time._replace(nats=found.time.nats - math.log(tick), median_error=found.time.median_error / tick)
        rows.append(model_row(found._replace(time=time), CheckpointConfig(config, TrainConfig(), source, (), 0)))
    per_hour = found.time.nats - math.log(3600)
    for row in rows:
        assert row["time_nats"] == pytest.approx(per_hour)
        assert row["joint_nats"] == pytest.approx(per_hour + found.token_nats)
        assert row["median_time_error"] == pytest.approx(found.time.median_error / 3600)


def write_corpus(folder: Path, splits: dict[str, EventSequences | None], vocabulary: tuple[str, ...] | TextTokenizer, time_unit: str = "s") -> Path:
    """A corpus of events, or of texts with a tokenizer."""
    folder.mkdir(parents=True)
    texts = isinstance(vocabulary, TextTokenizer)
    content = vocabulary.json() if isinstance(vocabulary, TextTokenizer) else json.dumps([{"token": t, "count": 1} for t in vocabulary]).encode()
    name, entries = "tokenizer.json" if texts else "vocabulary.json", {}
    (folder / name).write_bytes(content)
    for split, events in splits.items():
        entries[split] = split_entry([])
        if events is not None:
            path = folder / f"{split}-00000.safetensors"
            entries[split] = split_entry([write_shard(path, events.tokens.astype(np.uint32), events.times, events.offsets)])
    size = vocabulary.size if isinstance(vocabulary, TextTokenizer) else len(vocabulary)
    entry = FileEntry(name, size, len(content), hashlib.sha256(content).hexdigest())
    fields = Fields(None, "time", text="text") if texts else Fields("who", "when", ("what",))
    write_index(folder, Index(1, "texts" if texts else "events", time_unit, 1.0, "int64", entry, fields, entries))  # type: ignore[arg-type]
    return folder


VOCABULARY = ("<unk>", "b", "c", "d", "e", "f", "g")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a checkpoint, a corpus of its tokens)."""
    folder = tmp_path_factory.mktemp("eval")
    saved = CheckpointConfig(CONFIG, TrainConfig(), EventSource("who", "when", ("what",), "s"), VOCABULARY, 0)
    save_checkpoint(folder / "checkpoint", PARAMS, saved)
    splits = {"train": sequences(2, [40, 30]), "valid": None, "test": sequences(3, [20, 10])}
    return folder / "checkpoint", write_corpus(folder / "corpus", splits, VOCABULARY)


def called(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    cli.run(["eval", *map(str, arguments)])
    return capsys.readouterr().out


def test_a_corpus(trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, JSON and plot; beside the model what its training split teaches; each backend."""
    checkpoint, corpus = trained
    found = json.loads(called(capsys, checkpoint, "--data", corpus, "--json", "--plot", tmp_path / "c.png"))
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert (found["targets"], found["time_unit"], found["data"]) == (28, "hours", f"{corpus}, split test")
    rows = {row["name"]: row for row in found["results"]}
    train, test = sequences(2, [40, 30]), sequences(3, [20, 10])
    assert rows["majority"]["token_nats"] == pytest.approx(majority_nats(train, test, 7))
    assert rows["bigram counts"]["token_nats"] == pytest.approx(bigram_nats(train, test, 7))
    nats, error = log_normal_baseline(train, test, 1.0)
    assert rows["log-normal of all gaps"]["time_nats"] == pytest.approx(nats - math.log(3600))
    assert rows["log-normal of all gaps"]["median_time_error"] == pytest.approx(error / 3600)
    direct = {result.order: result for result in scores(load_backend("cpu"), PARAMS, test, CONFIG)}
    for name, order in (("model, token first", "token_then_time"), ("model, time first", "time_then_token")):
        mine: Scores = direct[order]  # type: ignore[index]
        assert mine.time is not None
        assert rows[name]["order"] == order
        assert rows[name]["token_nats"] == mine.token_nats
        assert rows[name]["pit"] == mine.time.pit.tolist()
    text = called(capsys, checkpoint, "--data", corpus, "--split", "train", "--backend", "reference")
    assert f"68 events of {corpus}, split train" in text
    assert all(name in text for name in rows)


def test_a_file(run_folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model of the rhythm, on all it has and has not seen: tokens nearly certain, no baselines."""
    found = json.loads(called(capsys, run_folder / "checkpoint", "--data", corpus, "--json"))
    assert [row["name"] for row in found["results"]] == ["model, token first", "model, time first"]
    assert found["targets"] == 40 * 29
    for row in found["results"]:
        assert row["accuracy"] > 0.95
        assert row["top_5"] == 1.0
        assert row["joint_nats"] == pytest.approx(row["token_nats"] + row["time_nats"])
    assert "PIT" in called(capsys, run_folder / "checkpoint", "--data", corpus)


def test_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens alone; what the model was trained to predict alone: here what follows the marker."""
    tokenizer = TextTokenizer.train(["Q: a A: b</s>"], 300, ["Q:", "A:"])
    config = ModelOptions(embed_dim=8, hidden_dim=8, heads=2, window=4, next_time=False).config(tokenizer.size, TIME)
    texts = [tokenizer.encode(text) for text in ("Q: ab A: ba</s>", "Q: b A: a</s>")]
    lengths = np.array([t.size for t in texts])
    events = EventSequences(("0", "1"), np.concatenate(texts), np.full(lengths.sum(), START), np.concatenate([[0], np.cumsum(lengths)]), ())
    corpus = write_corpus(tmp_path / "corpus", {"train": events, "valid": None, "test": events}, tokenizer)
    for name, after in (("all", None), ("answers", "A:")):
        saved = CheckpointConfig(config, TrainConfig(targets_after=after), TextSource("s"), (), 0)
        save_checkpoint(tmp_path / name, lively_model(config, 0), saved, tokenizer=tokenizer)
        found = json.loads(called(capsys, tmp_path / name, "--data", corpus, "--json", "--plot", tmp_path / "p.png"))
        answers = sum(t.size - 1 - t.tolist().index(tokenizer.token("A:")) for t in texts)
        assert found["targets"] == (lengths.sum() - 2 if after is None else answers)
        assert [row["name"] for row in found["results"]] == ["majority", "bigram counts", "model"]
    assert "next time" not in called(capsys, tmp_path / "all", "--data", corpus)

    (tmp_path / "x.csv").write_text("text\na\n")
    other = TextTokenizer.train(["quite another"], 280, ["Q:", "A:"])
    others = write_corpus(tmp_path / "others", {"train": events, "valid": None, "test": events}, other)
    x, model = tmp_path / "x.csv", tmp_path / "all"
    assert refused(model, "--data", x) == f"{x}: {model} is a model of texts, expected the folder of a corpus that ttr preprocess made of texts"
    assert refused(model, "--data", others) == f"{others}: its tokens are not those of {model}, expected a corpus made with the same ones"


def refused(*arguments: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        cli.run(["eval", *map(str, arguments)])
    return str(caught.value)


def test_bad_calls(trained: tuple[Path, Path], run_folder: Path, corpus: Path, tmp_path: Path) -> None:
    model, folder = trained
    assert refused(tmp_path, "--data", folder).startswith(f"{tmp_path}: not a checkpoint")
    assert refused(model, "--data", tmp_path / "none.csv").startswith(f"{tmp_path / 'none.csv'}: there is no such file")
    assert refused(model, "--data", tmp_path) == f"{tmp_path}: not a corpus, expected a folder with index.json as ttr preprocess makes it"
    assert refused(model, "--data", folder, "--split", "tset") == "--split 'tset' is unknown, expected train, valid or test"
    assert refused(model, "--data", corpus, "--split", "test") == f"{corpus}: a file is evaluated as a whole; --split is for the folder of a corpus"
    assert refused(model, "--data", folder, "--sort") == f"{folder}: a corpus is in order of time already; --sort is for a file"
    nothing = f"{folder}, split valid: there is nothing to predict in it, expected a sequence with two events or tokens"
    assert refused(model, "--data", folder, "--split", "valid") == nothing
    assert refused(model, "--data", folder, "--seed", "-1") == "--seed must not be negative, got -1"
    for plot in (tmp_path / "p.pdf", tmp_path / "none" / "p.png"):
        assert refused(model, "--data", folder, "--plot", plot) == f"--plot {plot}: expected the name of a .png file in a folder that is there"
    rhythm = run_folder / "checkpoint"
    assert refused(rhythm, "--data", folder) == f"{folder}: its tokens are not those of {rhythm}, expected a corpus made with the same ones"
    splits = {"train": sequences(2, [40]), "valid": None, "test": sequences(3, [20])}
    other = write_corpus(tmp_path / "ms", splits, VOCABULARY, "ms")
    assert refused(model, "--data", other) == f"{other}: its times are in ms, expected s as those of {model}"
    texts = write_corpus(tmp_path / "texts", splits, TextTokenizer.train([], 257))
    assert refused(model, "--data", texts) == f"{texts}: a corpus of texts, but {model} is a model of events"
    assert not list(tmp_path.glob("*.pdf"))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_predictions_that_are_no_numbers(trained: tuple[Path, Path], tmp_path: Path, backend: str) -> None:
    """Of tokens, or of times alone."""
    _, folder = trained
    source = EventSource("who", "when", ("what",), "s")
    assert PARAMS.time_head is not None
    head = PARAMS.time_head.mixture
    all_nan = PARAMS._replace(embedding=np.full_like(PARAMS.embedding, np.nan))
    times_nan = PARAMS._replace(time_head=PARAMS.time_head._replace(mixture=head._replace(b_mixture=np.full_like(head.b_mixture, np.nan))))
    for name, params in (("all", all_nan), ("times", times_nan)):
        save_checkpoint(tmp_path / name, params, CheckpointConfig(CONFIG, TrainConfig(), source, VOCABULARY, 0))
        told = "28 of 28 predictions in a batch are NaN: its numbers are damaged or too large for its type, expected a model that was trained well"
        assert refused(tmp_path / name, "--data", folder, "--backend", backend) == f"{tmp_path / name}: on {folder}, split test {told}"
