"""The benchmarks on tiny models: turns and ratios by hand, what is counted against naive counts, every command."""

import csv
import importlib
import json
import random
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_files import WORDS, write_csv, write_stsb
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoTokenizer

from eval.bench import encode, encoders, flops, imports, memory, trainers
from eval.bench.__main__ import main
from eval.bench.flops import encoder_flops
from eval.bench.process import in_fresh_process, peak_bytes
from eval.bench.results import read_result
from eval.bench.table import readme_tables, result_tables
from eval.bench.texts import open_text_set
from eval.bench.timing import paired_ratio, rotated, time_rounds
from eval.bench.train import bench_train
from simcse_kit.errors import UserError

COUNT = 40
MEGABYTE = 2**20


@pytest.fixture(scope="module", autouse=True)
def small_matrices():
    """Of what size the ceiling is measured with is of no matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flops, "_SIDE", {"cpu": 64})
        yield


@pytest.fixture(autouse=True)
def own_threads():
    """What a benchmark sets its threads to is not what the tests behind it shall compute with."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A file of texts that all differ in their number of characters, with blank lines and repetitions between."""
    draw, found = random.Random(5), {}
    while len(found) < COUNT:
        text = " ".join(draw.choices(WORDS, k=draw.randint(1, 15)))
        found.setdefault(len(text), text)
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("".join(f"{text}\n\n {text}\n" for text in found.values()))
    return path


@pytest.fixture(scope="module")
def senteval(tmp_path_factory):
    folder = tmp_path_factory.mktemp("senteval")
    write_stsb(folder / "STS" / "STSBenchmark")
    return folder


def read_lines(path):
    return list(dict.fromkeys(line.strip() for line in path.read_text().splitlines() if line.strip()))


# --- timing -----------------------------------------------------------------------------------------------------------


def test_every_round_runs_all_in_turn_and_ratios_are_of_the_same_round():
    now, calls = [0.0], []
    takes = {"a": iter([4.0, 6.0, 9.0]), "b": iter([2.0, 2.0, 2.0]), "c": iter([8.0, 3.0, 9.0])}

    def system(name):
        def work():
            calls.append(name)
            now[0] += next(takes[name])

        return work

    seconds = time_rounds({name: system(name) for name in takes}, 3, clock=lambda: now[0])
    assert "".join(calls) == "abc" + "bca" + "cab"
    assert seconds == {"a": [4, 6, 9], "b": [2, 2, 2], "c": [8, 3, 9]}
    ratio = paired_ratio(seconds["a"], seconds["b"])  # 2, 3, 4.5
    assert (ratio.lowest, ratio.median, ratio.highest) == (2, 3, 4.5)
    assert (ratio.lower_quartile, ratio.upper_quartile) == (2.5, 3.75)
    assert paired_ratio(seconds["a"], seconds["c"]).median == 1  # of 0.5, 2, 1: not of the medians' 6 / 8


def test_systems_are_first_equally_often_over_as_many_rounds():
    orders = list(rotated("abcd", 8))
    assert [order[0] for order in orders] == list("abcdabcd") and all(sorted(order) == list("abcd") for order in orders)


# --- text sets --------------------------------------------------------------------------------------------------------


def test_made_texts_have_the_lengths_that_were_asked_for(texts, tiny_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint("bert"))

    def tokenize(found):
        return tokenizer(found, add_special_tokens=False)["input_ids"]

    def made(recipe, seed=1):
        return open_text_set(f"x={recipe}:{texts}", count=300, seed=seed, tokenize=tokenize).texts

    assert {len(ids) for ids in tokenize(made("length12"))} == {12}
    mixed = made("lognormal32")
    lengths = np.array([len(ids) for ids in tokenize(mixed)])
    assert lengths.min() >= 1 and lengths.max() <= 256 and len(set(mixed)) == 300
    # Of the logarithm, three standard errors around the mean and the deviation.
    assert np.log(lengths).mean() == pytest.approx(np.log(32), abs=3 / 300**0.5)
    assert np.log(lengths).std() == pytest.approx(1, abs=3 / 600**0.5)
    assert made("lognormal32") == mixed != made("lognormal32", seed=2)


def test_sentences_of_stsb_are_those_of_test_first(senteval):
    found = open_text_set(f"s=stsb:{senteval}", count=60, seed=1, tokenize=None).texts
    with (senteval / "STS/STSBenchmark/sts-test.csv").open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    test = {text for row in rows for text in row[5:]}
    assert set(found[: len(test)]) == test and len(set(found)) == 60


# --- what is counted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_flops_are_those_that_torch_counts(family, tiny_checkpoint):
    # In one step, as by default, torch does not count attention on a CPU.
    backbone = AutoModel.from_pretrained(tiny_checkpoint(family), attn_implementation="eager").eval()
    lengths, counted = [3, 17, 40], 0
    for length in lengths:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbone(input_ids=torch.full((1, length), 50))
        counted += counter.get_total_flops()
    pooler = 2 * 32 * 32 * len(lengths) if family != "distilbert" else 0
    assert encoder_flops(backbone, lengths) == counted - pooler


def test_a_fresh_process_knows_nothing_of_the_memory_of_this_one(tmp_path, monkeypatch):
    # A module of its own, so that the process need not import this one.
    body = "def grow(size):\n    kept = b'x' * size\n    return peak_bytes()\n"
    (tmp_path / "grow_for_bench.py").write_text(f"from eval.bench.process import peak_bytes\n{body}")
    monkeypatch.syspath_prepend(tmp_path)
    grow = importlib.import_module("grow_for_bench").grow
    kept = b"x" * (700 * MEGABYTE)
    small, large = in_fresh_process(grow, 0), in_fresh_process(grow, 200 * MEGABYTE)
    assert small < peak_bytes() - len(kept) / 2
    assert (large - small) / MEGABYTE == pytest.approx(200, abs=20)


# --- commands ---------------------------------------------------------------------------------------------------------


def run(*args):
    return main([str(arg) for arg in args])


def padded_tokens(model, texts, batch_size, key):
    """Tokens, padding included, of batches of texts in the order of a key, the largest first."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ordered = sorted(texts, key=key, reverse=True)
    batches = [tokenizer(ordered[start : start + batch_size]) for start in range(0, len(ordered), batch_size)]
    widths = [[len(ids) for ids in batch["input_ids"]] for batch in batches]
    return sum(map(sum, widths)), sum(max(lengths) * len(lengths) for lengths in widths)


@pytest.fixture
def half_precision(monkeypatch):
    """Tell the benchmarks whether this processor has instructions for it."""

    def has_them(has):
        for module in (encoders, trainers):
            monkeypatch.setattr(module, "has_instructions", lambda dtype, device: has or dtype == torch.float32)

    return has_them


def test_half_precision_is_left_out_where_it_is_slow(half_precision, texts, tiny_checkpoint, tmp_path):
    half_precision(False)
    arguments = ["--model", tiny_checkpoint("bert"), "--threads", 1, "-o", tmp_path / "r.json"]
    names = ["sentence-transformers-bf16", "ours", "ours-bf16", "sentence-transformers"]
    encode_arguments = ["--texts", f"own={texts}", "--count", COUNT, "--rounds", 1, "--no-memory", "--device", "cpu"]
    assert run("encode", *arguments, *encode_arguments, "--systems", ",".join(names)) == 0
    reason = "needs a processor with instructions for bfloat16"
    left_out = dict.fromkeys(["sentence-transformers-bf16", "ours-bf16"], reason)
    assert read_result(tmp_path / "r.json").left_out == left_out
    train_arguments = ["--text", texts, "--steps", 2, "--block", 1, "--batch-size", 8]
    assert run("train", *arguments, *train_arguments, "--systems", "reference,ours,ours-bf16") == 0
    assert read_result(tmp_path / "r.json").left_out == {"ours-bf16": reason}


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_encode_measures_every_system_on_every_set(
    family, texts, senteval, tiny_checkpoint, half_precision, tmp_path, monkeypatch, capsys
):
    half_precision(True)
    monkeypatch.setattr(encode, "in_fresh_process", lambda function, *args: function(*args))  # which is tested above
    model, found = tiny_checkpoint(family), read_lines(texts)
    names = ["sentence-transformers", "ours", "ours-bf16", "sentence-transformers-best"]
    arguments = ["--model", model, "--systems", ",".join([*names, "sentence-transformers-unpadded"]), "--count", COUNT]
    arguments += ["--texts", f"own={texts}", "--texts", f"sts=stsb:{senteval}", "--senteval", senteval, "--rounds", 3]
    assert run("encode", *arguments, "--threads", 1, "--device", "cpu", "-o", tmp_path / "e.json") == 0

    result = read_result(tmp_path / "e.json")
    assert json.loads((tmp_path / "e.json").read_text()) == result.model_dump(mode="json")
    assert (result.model, result.machine.threads, result.settings.rounds) == (f"tiny-{family}", 1, 3)
    assert result.machine.instructions == torch.backends.cpu.get_cpu_capability()
    assert result.left_out.keys() == {"sentence-transformers-unpadded"}
    assert [(own.name, own.source) for own in result.sets] == [("own", "texts.txt"), ("sts", f"stsb:{senteval.name}")]
    own = result.sets[0]
    assert list(own.systems) == names and all(len(system.seconds) == 3 for system in own.systems.values())
    tokens, padded = padded_tokens(model, found, 32, key=len)
    assert own.tokens == tokens and own.systems["sentence-transformers"].padding == pytest.approx(1 - tokens / padded)
    _, one_batch = padded_tokens(model, found, COUNT, key=len)
    ours = 0 if family == "bert" else 1 - tokens / one_batch
    assert own.systems["ours"].padding == pytest.approx(ours)
    assert own.systems["ours"].min_cosine > 0.99999 > own.systems["ours-bf16"].min_cosine > 0.99
    assert own.systems["sentence-transformers"].speedup.lowest == own.systems["sentence-transformers"].speedup.highest
    fast = own.systems["ours"]
    rate = float(np.median(own.flops / np.array(fast.seconds) / np.array(own.ceiling["float32"])))
    assert fast.ceiling_share == pytest.approx(rate) and set(own.ceiling) == {"float32", "bfloat16"}
    assert all(system.peak_bytes > 100 * MEGABYTE for system in own.systems.values())
    assert fast.tokens_per_second == pytest.approx(tokens / sorted(fast.seconds)[1])
    assert result.stsb["ours"] == pytest.approx(result.stsb["sentence-transformers"], abs=0.01)
    printed = capsys.readouterr().out
    assert result_tables(result) in printed and f"| ours | {fast.speedup.median:.2f}x [" in printed
    assert f"| ours | {fast.speedup.median:.2f}x |" in readme_tables(tmp_path)


def test_train_gives_every_system_the_same_batches_and_the_same_model(texts, tiny_checkpoint, half_precision, tmp_path):
    half_precision(True)
    names = ["reference", "ours", "sentence-transformers", "reference-bf16", "ours-bf16", "ours-fp16"]
    arguments = ["--model", tiny_checkpoint("bert"), "--text", texts, "--systems", ",".join(names), "--seeds", "3,4"]
    arguments += ["--steps", 9, "--block", 3, "--batch-size", 8, "--lr", 1e-3, "--dropout", 0, "--threads", 1]
    assert run("train", *arguments, "-o", tmp_path / "t.json") == 0
    result = read_result(tmp_path / "t.json")
    trained = result.systems
    assert result.left_out == {"ours-fp16": "fp16 needs a GPU"}
    assert all(len(system.seconds_per_step) == 4 for system in trained.values())  # two of three blocks, two seeds
    for seed in (3, 4):
        expected = np.array(trained["reference"].losses[seed])
        assert len(set(expected)) == 9
        for name, tolerance in {"ours": 1e-4, "sentence-transformers": 1e-4, "ours-bf16": 0.1}.items():
            assert trained[name].losses[seed] == pytest.approx(expected, abs=tolerance), name
    assert trained["reference"].losses[3] != trained["reference"].losses[4]
    assert trained["reference-bf16"].losses[3] != trained["reference"].losses[3]
    assert "| ours |" in readme_tables(tmp_path)


def test_seeds_that_are_done_are_kept_and_the_others_follow(texts, tiny_checkpoint, tmp_path, capsys):
    output = tmp_path / "t.json"
    arguments = ["--model", tiny_checkpoint("bert"), "--text", texts, "--systems", "reference,ours", "--batch-size", 8]
    arguments += ["--steps", 4, "--block", 2, "--dropout", 0, "--threads", 1, "-o", output]
    assert run("train", *arguments, "--seeds", "3,4") == 0
    both = read_result(output)
    assert run("train", *arguments, "--seeds", 3) == 0
    first = read_result(output)
    assert run("train", *arguments, "--seeds", "3,4", "--resume") == 0
    found = read_result(output)
    assert found.settings == both.settings and len(found.tokens) == 2
    for name, own in found.systems.items():
        assert own.losses == {seed: pytest.approx(curve) for seed, curve in both.systems[name].losses.items()}
        assert own.seconds_per_step[:1] == first.systems[name].seconds_per_step and len(own.seconds_per_step) == 2
        assert own.speedup.highest == max(
            np.array(found.systems["reference"].seconds_per_step) / np.array(own.seconds_per_step)
        )
    before = output.read_text()
    capsys.readouterr()
    for options in (
        ["--seeds", 3],
        ["--seeds", "3,4,5", "--lr", 1e-4],
        ["--seeds", "3,4", "--systems", "reference,ours,ours-bf16"],
    ):
        assert run("train", *arguments, *options, "--resume") == 2
        assert "--resume: the file is of other" in capsys.readouterr().err and output.read_text() == before


def test_dropout_is_on_unless_it_is_set(texts, tiny_checkpoint, tmp_path):
    arguments = ["--model", tiny_checkpoint("bert"), "--text", texts, "--systems", "reference,ours"]
    arguments += ["--systems", "reference,ours,sentence-transformers", "--steps", 2, "--block", 1, "--batch-size", 8]
    for name, options in {"off": ["--dropout", 0], "on": []}.items():
        assert run("train", *arguments, *options, "--threads", 1, "-o", tmp_path / f"{name}.json") == 0
    on, off = (read_result(tmp_path / f"{name}.json").systems for name in ("on", "off"))
    for name in on:
        assert abs(on[name].losses[1][0] - off[name].losses[1][0]) > 1e-3, name


@pytest.mark.slow
def test_memory_is_that_of_a_chunk_and_not_of_the_batch(tiny_checkpoint, tmp_path):
    draw = random.Random(2)
    rows = [[" ".join(draw.choices(WORDS, k=25)) for _ in range(3)] for _ in range(1_000)]
    file = write_csv(tmp_path / "triplets.csv", ["sent0", "sent1", "hard_neg"], rows)
    arguments = ["--triplets", file, "--batch-sizes", "1200", "--chunk-sizes", "0,64,1200", "--steps", 1]
    arguments += ["--model", tiny_checkpoint("bert"), "--threads", 1, "-o", tmp_path / "m.json"]
    assert run("memory", *arguments) == 0
    result = read_result(tmp_path / "m.json")
    assert [(one.batch_size, one.chunk_size) for one in result.runs] == [(1200, None), (1200, 64)]
    whole, chunked = ((one.peak_bytes - one.opened_bytes) / MEGABYTE for one in result.runs)
    assert whole > 200 and whole > 5 * chunked
    assert "| 1,200 | 64 |" in result_tables(result)


def test_a_run_that_is_killed_is_told(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    def killed(*args):
        raise BrokenProcessPool

    monkeypatch.setattr(memory, "in_fresh_process", killed)
    file = write_csv(tmp_path / "triplets.csv", ["sent0", "sent1", "hard_neg"], [["a", "b", "c"]])
    assert run("memory", "--triplets", file, "--batch-sizes", 64, "-o", tmp_path / "m.json", "--chunk-sizes", 0) == 0
    assert read_result(tmp_path / "m.json").runs[0].peak_bytes is None and "| killed |" in capsys.readouterr().out


def test_import_looks_at_every_script(tmp_path, monkeypatch):
    scripts = 'simcse-encode = "simcse_kit.cli.encode:main"\nsimcse-eval = "torch:get_num_threads"\n'
    (tmp_path / "pyproject.toml").write_text(f"[project.scripts]\n{scripts}")
    monkeypatch.setattr(imports, "_PYPROJECT", tmp_path / "pyproject.toml")
    assert run("import", "--calls", 1, "-o", tmp_path / "i.json") == 0
    commands = read_result(tmp_path / "i.json").commands
    assert {name: start.imports_torch for name, start in commands.items()} == {
        "simcse-encode": False,
        "simcse-eval": True,
    }
    assert all(start.seconds == [start.median] for start in commands.values())


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["encode", "--texts", "a=nowhere.txt"], "nowhere.txt"),
        (["encode", "--texts", "a={texts}", "--systems", "ours,theirs"], "'theirs' is unknown; known: "),
        (["encode", "--texts", "a={texts}", "--systems", "ours"], "is none of --systems"),
        (["encode", "--texts", "{texts}"], "NAME=SOURCE"),
        (["encode", "--texts", "a={texts}"], "40 different texts, but --count is 1,500"),
        (["train", "--text", "{texts}", "--steps", "10"], "multiple of --block 50"),
        (["train", "--text", "{texts}"], "40 different texts do not fill one batch of 64"),
        (["train", "--text", "{texts}", "--seeds", "1,1"], "--seeds 1,1: expected different whole numbers"),
        (["memory", "--triplets", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_a_mistake_is_one_line(args, message, texts, tiny_checkpoint, tmp_path, capsys):
    filled = [arg.format(texts=texts) for arg in args]
    output, model = tmp_path / "out.json", tiny_checkpoint("bert")
    capsys.readouterr()  # what making the checkpoint wrote
    assert run(*filled, "--model", model, "-o", output) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not output.exists()


def test_what_is_no_result_file_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"benchmark": "import", "machine": {}}')
    with pytest.raises(UserError, match=r"x\.json: not a result file of eval\.bench"):
        read_result(tmp_path / "x.json")


def test_a_result_file_that_cannot_be_written_is_told_before_the_work(texts, tmp_path, capsys):
    for command in (
        ["train", "--text", texts],
        ["import"],
        ["encode", "--texts", f"a={texts}"],
        ["memory", "--triplets", texts],
    ):
        assert run(*command, "-o", tmp_path / "missing" / "result.json") == 2
        assert "does not exist; create it first" in capsys.readouterr().err


def test_training_beside_a_peer_that_would_take_several_gpus_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    settings = SimpleNamespace(threads=torch.get_num_threads())
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        next(bench_train("model", tmp_path / "texts.txt", settings))
