"""Opening checkpoints: what opens, what is refused and how, dropout, tokenizers."""

import json
import shutil

import naive
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing

from simcse_kit import SentenceEncoder, UserError, attention
from simcse_kit.backbone import released_pooling

open_encoder = SentenceEncoder.from_pretrained


@pytest.fixture
def copied(tiny_checkpoint, tmp_path):
    """Copy a tiny checkpoint, to be changed."""

    def copy(family="bert", name="checkpoint"):
        return shutil.copytree(tiny_checkpoint(family), tmp_path / name)

    return copy


def edit_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(directory, change):
    weights = load_file(directory / "model.safetensors")
    save_file(change(weights), directory / "model.safetensors", metadata={"format": "pt"})


def refused(directory, said, **options):
    """Assert that a directory is refused in one line that begins with its name."""
    with pytest.raises(UserError, match=rf"^{directory}: [^\n]*{said}[^\n]*$"):
        open_encoder(directory, **options)


def test_a_directory_without_a_model(tmp_path):
    refused(tmp_path, "no model here .*no config.json")


def test_a_checkpoint_without_weights(copied):
    directory = copied()
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    refused(directory, r"no weights here \(no model\.safetensors")


def test_pickled_weights_are_opened_only_when_allowed(copied, tiny_checkpoint, sentences):
    directory = copied()
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    refused(directory, "the weights are pickled.*allow_pickle=True")
    opened = open_encoder(directory, allow_pickle=True).encode(sentences)
    assert naive.largest_difference(opened, open_encoder(tiny_checkpoint()).encode(sentences)) == 0


@pytest.mark.parametrize("content", [b"", b"x" * 100, None], ids=["empty", "garbage", "truncated"])
def test_weights_that_cannot_be_read(copied, content):
    directory = copied()
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000] if content is None else content)
    refused(directory, "cannot be opened as an encoder: .*header")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{not json", r"config\.json: not valid JSON"),
        (b"\xff\xfe\x00", r"config\.json: not valid JSON"),
        (b"[]", "cannot be opened as an encoder: "),
        (b"{}", "cannot be opened as an encoder: .*model_type"),
        (b'{"model_type": "frobnicate"}', "cannot be opened as an encoder: .*frobnicate"),
    ],
)
def test_a_config_that_cannot_be_read(copied, content, said):
    directory = copied()
    (directory / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"^{directory}[^\n]*{said}[^\n]*$"):
        open_encoder(directory)


def test_a_config_that_its_weights_do_not_fit(copied):
    refused_keys = r"do not fit .*encoder\.layer\.3\.attention\.output\.LayerNorm\.bias, .* missing or misshapen"
    directory = copied()
    edit_config(directory, num_hidden_layers=4)
    refused(directory, refused_keys)
    edit_config(directory, num_hidden_layers=3, hidden_size=48)
    refused(directory, r"do not fit .*embeddings\.LayerNorm\.bias, .* missing or misshapen")


def test_missing_weights_are_named(copied):
    directory = copied()
    key = "encoder.layer.1.output.dense.bias"
    edit_weights(directory, lambda weights: {name: tensor for name, tensor in weights.items() if name != key})
    refused(directory, f"do not fit the encoder of config.json: {key} missing")


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_a_checkpoint_without_its_tokenizer(copied, family):
    """Transformers would make one up, whose vocabulary is five special tokens."""
    directory = copied(family)
    (directory / "tokenizer.json").unlink()
    refused(directory, "tokenizer")


def test_a_tokenizer_that_cannot_be_read(copied):
    directory = copied()
    (directory / "tokenizer.json").write_text("{")
    refused(directory, "cannot be opened as an encoder")


def test_a_vocabulary_file_alone_will_do(copied):
    directory = copied()
    (directory / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]
    (directory / "vocab.txt").write_text("\n".join(words))
    assert open_encoder(directory).tokenize(["the dog", "The cat"]) == [[2, 5, 1, 3], [2, 5, 6, 3]]


NO_ENCODERS = {
    "gpt2": transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=300),
    "t5": transformers.T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=300),
    "bart": transformers.BartConfig(
        d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1,
        vocab_size=300,
    ),
    "vit": transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8),
    "fnet": transformers.FNetConfig(hidden_size=8, num_hidden_layers=1, intermediate_size=8, vocab_size=300),
}  # fmt: skip


@pytest.mark.parametrize("model_type", NO_ENCODERS)
@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_a_model_that_is_no_text_encoder(copied, model_type, trust_remote_code):
    directory = copied()
    transformers.AutoModel.from_config(NO_ENCODERS[model_type]).save_pretrained(directory)
    refused(directory, "is no (text )?encoder", trust_remote_code=trust_remote_code)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pooling": "avg"}, "pooling 'avg' is unknown; known: cls, cls_pooler, mean"),
        ({"dtype": "float31"}, "dtype 'float31' is unknown; use float32"),
        ({"dtype": "int16"}, "dtype 'int16' is unknown; use float32, bfloat16, float16 or, on a CPU, int8"),
        ({"device": "nope"}, r"device 'nope' is not to be had here \(.*\); use cpu"),
        ({"device": f"cuda:{torch.cuda.device_count()}"}, r"device 'cuda:\d' is not to be had here \(.*\); use cpu"),
        ({"dropout": 1.5}, "dropout probability has to be between 0 and 1, but got 1.5"),
        ({"max_length": 97}, "max_length 97 does not fit .*: it takes 3 to 96 tokens"),
        ({"max_length": 2}, "max_length 2 does not fit"),
    ],
)
def test_options_that_do_not_fit(tiny_checkpoint, options, said):
    with pytest.raises(UserError, match=rf"^[^\n]*{said}[^\n]*$"):
        open_encoder(tiny_checkpoint("bert"), **options)


@pytest.mark.parametrize("family", ["distilbert", "modernbert", "electra"])
def test_cls_pooler_needs_a_pooler(tiny_checkpoint, family):
    refused(tiny_checkpoint(family), "no weights for a pooler", pooling="cls_pooler")


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("princeton-nlp/unsup-simcse-bert-base-uncased", "cls"),
        ("princeton-nlp/sup-simcse-roberta-large", "cls_pooler"),
        ("unsup-simcse-roberta-base", "cls"),
        ("/models/sup-simcse-bert-large-uncased", "cls_pooler"),
        ("/hub/models--princeton-nlp--sup-simcse-bert-base-uncased/snapshots/0123", "cls_pooler"),
        ("/unsup-simcse-experiments/bert-base-uncased", None),
        ("/models/my-sup-simcse-bert-base", None),
        ("bert-base-uncased", None),
    ],
)
def test_the_released_simcse_models_are_known_by_name(name, pooling):
    assert released_pooling(name) == pooling


@pytest.mark.parametrize(("prefix", "pooling"), [("unsup", "cls"), ("sup", "cls_pooler")])
def test_simcse_releases_open_with_their_pooling(copied, sentences, prefix, pooling):
    directory = copied(name=f"{prefix}-simcse-bert-base-uncased")
    encoder = open_encoder(directory)
    assert encoder.pooling == pooling
    tokens = encoder.tokenizer(sentences[0], return_tensors="pt")
    output = transformers.AutoModel.from_pretrained(directory)(**tokens)
    expected = output.pooler_output[0] if pooling == "cls_pooler" else output.last_hidden_state[0, 0]
    assert naive.largest_difference(encoder.encode(sentences[0]), expected.detach()) < 1e-5


def test_a_checkpoint_of_the_training_code_opens(copied, tiny_checkpoint, sentences, capfd):
    """As SimCSE's training writes it: `bert.` before the keys, an MLP and a language model's head, no pooler."""

    def as_trained(weights):
        kept = {f"bert.{name}": tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
        extra = {"mlp.dense.weight": torch.randn(32, 32), "cls.predictions.bias": torch.randn(249)}
        return kept | extra

    directory = copied(name="unsup-simcse-bert-base-uncased")
    edit_weights(directory, as_trained)
    encoder = open_encoder(directory)
    expected = open_encoder(tiny_checkpoint("bert"), pooling="cls").encode(sentences)
    assert encoder.pooling == "cls"
    assert naive.largest_difference(encoder.encode(sentences), expected) == 0
    assert capfd.readouterr() == ("", "")  # transformers would print a table of keys it did not expect
    refused(directory, "no weights for a pooler", pooling="cls_pooler")


CODE = """
import torch
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig

    def forward(self, input_ids, attention_mask, **options):
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **options)
        output.last_hidden_state = output.last_hidden_state * 2
        return output
"""


def test_code_that_a_model_brings_is_run_only_when_trusted(copied, tiny_checkpoint, sentences, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = copied(name="own_code")
    (directory / "own.py").write_text(CODE)
    edit_config(directory, model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"})
    refused(directory, "Python code of its own; pass trust_remote_code=True")
    encoder = open_encoder(directory, trust_remote_code=True)
    doubled = 2 * open_encoder(tiny_checkpoint("bert")).encode(sentences)
    assert naive.largest_difference(encoder.encode(sentences), doubled) < 1e-5
    encoder.save_pretrained(tmp_path / "saved")
    saved = open_encoder(tmp_path / "saved", trust_remote_code=True)
    assert naive.largest_difference(saved.encode(sentences), doubled) < 1e-5


def attention_probabilities(monkeypatch, encoder):
    """Run the encoder on one batch without padding; returns the attention probabilities after dropout, [L, ...]."""
    assert encoder.packs  # found out before anything is counted
    ids, seen = torch.randint(5, 200, (16, 30), generator=torch.Generator().manual_seed(0)), []

    def spy(attend):
        def spied(query, key, value, *packing, **options):
            *places, heads, _ = key.shape  # [16, 30], or [1, 480] of a packed batch
            units = torch.eye(30).repeat(16, 1).view(*places, 1, 30).expand(-1, -1, heads, -1)
            found = attend(query, key, units, *packing, **options).detach()
            seen.append(found.reshape(16, 30, heads, 30))
            return attend(query, key, value, *packing, **options)

        return spied

    for name in ("_attend", "attend_by_length"):
        monkeypatch.setattr(attention, name, spy(getattr(attention, name)))
    torch.manual_seed(0)
    with torch.no_grad():
        encoder(ids, torch.ones_like(ids))
    assert len(seen) == 3
    return torch.stack(seen)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize(("option", "rate"), [(None, 0.1), (0.3, 0.3), (0.0, 0.0)])
def test_attention_probabilities_are_dropped_at_the_rate(tiny_checkpoint, monkeypatch, family, option, rate):
    encoder = open_encoder(tiny_checkpoint(family), device="cpu", dropout=option)
    kept = attention_probabilities(monkeypatch, encoder)
    assert (kept == 0).sum() == 0
    dropped = attention_probabilities(monkeypatch, encoder.train())
    # 86,400 probabilities: five standard deviations of their share.
    assert abs((dropped == 0).float().mean() - rate) <= 5 * (rate * (1 - rate) / dropped.numel()) ** 0.5
    # The others are scaled up, so that a row's sum is 1 in expectation.
    assert abs(dropped.sum(-1).mean() - 1) < 0.01


def test_dropout_masks(tiny_checkpoint):
    encoder = open_encoder(tiny_checkpoint("bert"), device="cpu").train()
    ids = torch.tensor([[2, 50, 60, 3], [2, 70, 80, 3]])
    mask = torch.ones_like(ids)

    def run(seed, times=1):
        torch.manual_seed(seed)
        return encoder(ids.repeat(times, 1), mask.repeat(times, 1))

    assert torch.equal(run(0), run(0))
    assert (run(0) - run(1)).abs().min(dim=1).values.max() > 0
    views = run(0, times=2)
    assert (views[:2] - views[2:]).abs().max() > 0.01


def test_one_padded_row_says_nothing_of_another(tiny_checkpoint):
    """Garbage in the padding changes no vector."""
    encoder = open_encoder(tiny_checkpoint("roberta"), device="cpu")
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    ids = torch.tensor([[0, 50, 60, 2], [0, 2, 1, 1]])
    other = torch.tensor([[0, 50, 60, 2], [0, 2, 99, 98]])
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids, mask), encoder(other, mask))


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_the_mask_survives_truncation(tiny_checkpoint, family):
    encoder = open_encoder(tiny_checkpoint(family), pooling="mask")
    tokenizer = encoder.tokenizer
    short, long = encoder.tokenize(["The cat sleeps.", "The cat sleeps. " * 100])
    assert (len(short) < 60, len(long)) == (True, 96)
    template = ('This sentence : "', '" means', ".")
    before, after, end = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in template)
    tail = [*after, tokenizer.mask_token_id, *end, short[-1]]
    for ids in (short, long):
        assert ids[1 : len(before) + 1] == before
        assert ids[-len(tail) :] == tail
        assert ids.count(tokenizer.mask_token_id) == 1
    plain = open_encoder(tiny_checkpoint(family)).tokenize(["The cat sleeps."])[0]
    assert short[1 + len(before) : -len(tail)] == plain[1:-1]
    assert encoder.check_max_length(len(before) + len(tail) + 2)
    with pytest.raises(UserError, match="does not fit"):
        encoder.check_max_length(len(before) + len(tail) + 1)


@pytest.mark.parametrize("lacks", ["a mask token", "a token at each end"])
def test_the_template_needs_a_tokenizer_like_berts(copied, lacks):
    directory = copied()
    backend = open_encoder(directory).tokenizer.backend_tokenizer
    mask = {"mask_token": "[MASK]"}
    if lacks == "a mask token":
        mask = {}
    else:
        backend.post_processor = TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", **mask)
    tokenizer.save_pretrained(directory)
    with pytest.raises(UserError, match="pooling mask needs a tokenizer with a mask token and one token at each end"):
        open_encoder(directory, pooling="mask")


def test_an_empty_text_has_a_vector_even_without_special_tokens(copied):
    directory = copied()
    for file, change in (("tokenizer.json", {"post_processor": None}),
                         ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})):  # fmt: skip
        content = json.loads((directory / file).read_text())
        (directory / file).write_text(json.dumps({**content, **change}))
    encoder = open_encoder(directory)
    assert encoder.tokenize([""]) == [[]]
    assert encoder.encode("").tolist() == encoder.encode(["", "the cat"])[0].tolist() == [0.0] * 32


def test_padding_and_truncation_of_the_tokenizer_file_change_nothing(copied, sentences):
    """As in all-MiniLM-L6-v2, whose tokenizer.json pads every text to 128 tokens and cuts it there."""
    directory = copied()
    expected = open_encoder(directory).encode(sentences)
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    content["padding"] = {
        "strategy": {"Fixed": 12}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    content["truncation"] = {"direction": "Left", "max_length": 12, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(content))
    encoder = open_encoder(directory)
    assert len(encoder.tokenize(sentences)[-1]) > 12
    assert naive.largest_difference(encoder.encode(sentences), expected) == 0


def test_a_tokenizer_that_pads_on_the_left_and_knows_no_limit(copied, sentences):
    from sentence_transformers import SentenceTransformer

    directory = copied()
    expected = open_encoder(directory).encode(sentences)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, padding_side="left", model_max_length=int(1e30))
    tokenizer.save_pretrained(directory)
    encoder = open_encoder(directory)
    assert encoder.max_length == 96
    assert naive.largest_difference(encoder.encode(sentences), expected) == 0
    encoder.save_pretrained(directory)
    assert (
        naive.largest_difference(SentenceTransformer(str(directory), device="cpu").encode(sentences), expected) < 1e-5
    )
