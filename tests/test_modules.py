import json
import shutil

import naive
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st_modules

from simcse_kit import SentenceEncoder, UserError
from simcse_kit.modules import Dense, read_layout
from simcse_kit.tokenization import open_tokenizer

ACTIVATIONS = {"Tanh": torch.nn.Tanh(), "Identity": None, "ReLU": torch.nn.ReLU(), "GELU": torch.nn.GELU()}


@pytest.fixture(scope="module")
def transformer(tiny_checkpoint):
    return st_modules.Transformer(str(tiny_checkpoint("bert")))


@pytest.fixture
def peer(transformer, tmp_path):
    """Write a model of sentence-transformers; returns it and its directory."""

    def write(*modules, name="peer"):
        model = SentenceTransformer(modules=[transformer, *modules], device="cpu")
        model.save(str(tmp_path / name), create_model_card=False)
        return model, tmp_path / name

    return write


@pytest.fixture(scope="module")
def written(transformer, tmp_path_factory):
    """The directory of a model with mean pooling, a Dense layer and Normalize; copy it before changing it."""
    directory = tmp_path_factory.mktemp("st") / "model"
    modules = [transformer, st_modules.Pooling(32, "mean"), st_modules.Dense(32, 32), st_modules.Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory), create_model_card=False)
    return directory


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
@pytest.mark.parametrize("normalize", [False, True])
def test_poolings_of_sentence_transformers(peer, sentences, mode, normalize):
    model, directory = peer(st_modules.Pooling(32, mode), *([st_modules.Normalize()] if normalize else []))
    encoder = SentenceEncoder.from_pretrained(directory, device="cpu")
    assert (encoder.pooling, encoder.normalize, encoder.head_name) == (mode, normalize, "none")
    assert naive.largest_difference(encoder.encode(sentences), model.encode(sentences)) < 1e-5
    lengths = np.linalg.norm(encoder.encode(sentences), axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) == normalize


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("width", "bias"), [(32, True), (8, False)])
def test_dense_layers_of_sentence_transformers(peer, sentences, activation, width, bias):
    dense = st_modules.Dense(32, width, bias=bias, activation_function=ACTIVATIONS[activation])
    model, directory = peer(st_modules.Pooling(32, "max"), dense, st_modules.Dense(width, 5), st_modules.Normalize())
    encoder = SentenceEncoder.from_pretrained(directory, device="cpu")
    assert encoder.dimension == 5
    vectors = encoder.encode(sentences)
    assert naive.largest_difference(vectors, model.encode(sentences)) < 1e-5
    encoder.save_pretrained(directory.with_name("ours"))
    reopened = SentenceTransformer(str(directory.with_name("ours")), device="cpu")
    assert naive.largest_difference(vectors, reopened.encode(sentences)) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_layer_that_equals_the_pooler_is_known_as_it(peer, transformer, sentences, bias):
    own = {f"init_{name}": value.detach().clone() for name, value in transformer.model.pooler.dense.named_parameters()}
    model, directory = peer(st_modules.Pooling(32, "cls"), st_modules.Dense(32, 32, bias=bias, **own))
    encoder = SentenceEncoder.from_pretrained(directory, device="cpu")
    assert (encoder.pooling, encoder.head_name) == (("cls_pooler", "none") if bias else ("cls", "mlp"))
    assert naive.largest_difference(encoder.encode(sentences), model.encode(sentences)) < 1e-5


def test_layouts_of_older_versions(written, sentences, tmp_path):
    """The backbone in a folder of its own, class paths and option names of version 2."""
    expected = SentenceTransformer(str(written), device="cpu").encode(sentences)
    old = tmp_path / "old"
    shutil.copytree(written, old)
    (old / "0_Transformer").mkdir()
    for file in [path for path in old.iterdir() if path.is_file() and path.name != "modules.json"]:
        file.rename(old / "0_Transformer" / file.name)
    (old / "0_Transformer" / "sentence_bert_config.json").unlink()
    (old / "0_Transformer" / "sentence_roberta_config.json").write_text('{"max_seq_length": 20}')
    modes = {"cls_token": False, "mean_tokens": True, "max_tokens": False, "mean_sqrt_len_tokens": False}
    options = {f"pooling_mode_{name}": on for name, on in modes.items()}
    (old / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **options}))
    edit(old / "2_Dense" / "config.json", lambda config: config.update(activation_function="torch.nn.Tanh"))

    def rename(modules):
        for module in modules:
            module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
        modules[0]["path"] = "0_Transformer"

    edit(old / "modules.json", rename)
    encoder = SentenceEncoder.from_pretrained(old, device="cpu")
    assert (encoder.max_length, encoder.pooling, encoder.normalize, encoder.head_name) == (20, "mean", True, "mlp")
    short = [len(ids) < 20 for ids in encoder.tokenize(sentences)]
    assert 3 < sum(short) < len(short)
    assert naive.largest_difference(encoder.encode(sentences)[short], expected[short]) < 1e-5
    peer = SentenceTransformer(str(old), device="cpu")
    assert naive.largest_difference(encoder.encode(sentences), peer.encode(sentences)) < 1e-5


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_lower_casing_is_done_and_saved(tiny_checkpoint, tmp_path, family):
    from transformers import AutoTokenizer

    directory = tmp_path / "cased"
    shutil.copytree(tiny_checkpoint(family), directory)
    if family == "bert":
        AutoTokenizer.from_pretrained(directory, do_lower_case=False).save_pretrained(directory)
    cased = SentenceEncoder.from_pretrained(directory)
    cased.save_pretrained(directory)
    edit(directory / "sentence_bert_config.json", lambda config: config.update(do_lower_case=True))
    text, lowered = "The CAT Sleeps", "the cat sleeps"
    assert cased.tokenize([text]) != cased.tokenize([lowered])
    encoder = SentenceEncoder.from_pretrained(directory)
    assert encoder.tokenize([text]) == cased.tokenize([lowered])
    assert [open_tokenizer(str(directory))(text)["input_ids"]] == cased.tokenize([lowered])
    encoder.save_pretrained(tmp_path / "saved")
    for opened in (
        SentenceEncoder.from_pretrained(tmp_path / "saved").tokenizer,
        SentenceTransformer(str(tmp_path / "saved"), device="cpu").tokenizer,
        AutoTokenizer.from_pretrained(tmp_path / "saved"),
    ):
        assert [opened(text)["input_ids"]] == cased.tokenize([lowered])


def test_pickled_dense_layers_are_opened_only_when_allowed(written, sentences, tmp_path):
    from safetensors.torch import load_file

    directory = tmp_path / "pickled"
    shutil.copytree(written, directory)
    torch.save(load_file(directory / "2_Dense" / "model.safetensors"), directory / "2_Dense" / "pytorch_model.bin")
    (directory / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"2_Dense: has no model\.safetensors; .* allow_pickle=True$"):
        SentenceEncoder.from_pretrained(directory)
    opened = SentenceEncoder.from_pretrained(directory, allow_pickle=True, device="cpu")
    expected = SentenceEncoder.from_pretrained(written, device="cpu").encode(sentences)
    assert naive.largest_difference(opened.encode(sentences), expected) == 0


UNSUPPORTED_MODULES = {
    "LSTM": lambda: [st_modules.LSTM(32, 8), st_modules.Pooling(16)],
    "CNN": lambda: [st_modules.CNN(32, 8), st_modules.Pooling(24)],
    "WordWeights": lambda: [st_modules.WordWeights(["a", "b"], {"a": 0.5, "b": 2.0}), st_modules.Pooling(32)],
    "WeightedLayerPooling": lambda: [st_modules.WeightedLayerPooling(32, 3, 1), st_modules.Pooling(32)],
    "module WordWeights": lambda: [
        st_modules.WeightedLayerPooling(32, 3, 2), st_modules.WordWeights(["a"], {"a": 1.0}, 0), st_modules.Pooling(32)
    ],
    "Dropout": lambda: [st_modules.Pooling(32), st_modules.Dropout(0.1)],
    "LayerNorm": lambda: [st_modules.Pooling(32), st_modules.LayerNorm(32)],
    "weightedmean": lambda: [st_modules.Pooling(32, "weightedmean")],
    "lasttoken": lambda: [st_modules.Pooling(32, "lasttoken")],
    "mean_sqrt_len_tokens": lambda: [st_modules.Pooling(32, "mean_sqrt_len_tokens")],
    r"\['cls', 'mean'\]": lambda: [st_modules.Pooling(32, ("cls", "mean"))],
    "include_prompt": lambda: [st_modules.Pooling(32, include_prompt=False)],
    "Dense module .*Sigmoid": lambda: [
        st_modules.Pooling(32), st_modules.Dense(32, 32, activation_function=torch.nn.Sigmoid())
    ],
    "Dense module .*residual": lambda: [st_modules.Pooling(32), st_modules.Dense(32, 32, use_residual=True)],
    "Dense module .*token_embeddings": lambda: [
        st_modules.Pooling(32), st_modules.Dense(32, 32, module_input_name="token_embeddings")
    ],
    "Dense at position 3": lambda: [st_modules.Pooling(32), st_modules.Normalize(), st_modules.Dense(32, 32)],
}  # fmt: skip


@pytest.mark.parametrize("named", UNSUPPORTED_MODULES)
def test_modules_that_are_not_supported_are_refused_by_name(peer, named):
    _, directory = peer(*UNSUPPORTED_MODULES[named]())
    with pytest.raises(UserError, match=rf"^{directory}[^\n]*{named}[^\n]*not supported[^\n]*$"):
        SentenceEncoder.from_pretrained(directory)


def change_type(to, at=0):
    return lambda modules: modules[at].update(type=to)


CHANGES = {
    "someone's own module": ("modules.json", change_type("custom_st.Transformer"), "custom_st.Transformer is not sup"),
    "Router": ("modules.json", change_type("sentence_transformers.models.Router"), "Router at position 0 is not"),
    "no pooling": ("modules.json", lambda modules: modules.clear(), "names no Transformer and Pooling module"),
    "no type": ("modules.json", lambda modules: modules[1].pop("type"), r"modules are malformed \(KeyError: 'type'"),
    "another output": (
        "sentence_bert_config.json",
        lambda config: config.update(module_output_name="sentence_embedding"),
        "options that are not supported: module_output_name",
    ),
    "processing": (
        "sentence_bert_config.json",
        lambda config: config.update(processing_kwargs={"text": {"max_length": 4}}),
        "options that are not supported: processing_kwargs",
    ),
    "a prompt by default": (
        "config_sentence_transformers.json",
        lambda config: config.update(prompts={"query": "query: "}, default_prompt_name="query"),
        "default prompt 'query' is not supported",
    ),
    "a wrong width": ("2_Dense/config.json", lambda config: config.update(in_features=7), "malformed .*size mismatch"),
    "no width": ("2_Dense/config.json", lambda config: config.pop("in_features"), "malformed .*'in_features'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_opened_with_equal_vectors_is_refused(written, tmp_path, change):
    file, mutate, said = CHANGES[change]
    directory = tmp_path / "changed"
    shutil.copytree(written, directory)
    edit(directory / file, mutate)
    with pytest.raises(UserError, match=rf"^{directory}[^\n]*{said}[^\n]*$"):
        read_layout(directory)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("modules.json", b"[{", r"modules\.json: not valid JSON"),
        ("modules.json", b"[1]", r"modules are malformed \(TypeError"),
        ("1_Pooling/config.json", None, r"1_Pooling/config\.json: cannot be read \(No such file or directory\)"),
        ("2_Dense/model.safetensors", b"\x08", r"malformed \(SafetensorError"),
    ],
)
def test_broken_files_are_named(written, tmp_path, file, content, said):
    directory = tmp_path / "broken"
    shutil.copytree(written, directory)
    (directory / file).unlink()
    if content is not None:
        (directory / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"^{directory}[^\n]*{said}[^\n]*$"):
        read_layout(directory)


def test_a_default_prompt_without_text_changes_nothing(written, tmp_path):
    directory = tmp_path / "prompt"
    shutil.copytree(written, directory)
    prompts = {"prompts": {"document": ""}, "default_prompt_name": "document"}
    edit(directory / "config_sentence_transformers.json", lambda config: config.update(prompts))
    assert read_layout(directory).pooling == "mean"


def test_a_plain_checkpoint_has_no_layout(tiny_checkpoint):
    assert read_layout(tiny_checkpoint("bert")) is None


def test_a_fresh_head_is_drawn_as_in_simcse():
    torch.manual_seed(0)
    head = Dense.head(256)
    weights = head.linear.weight.detach()
    assert abs(weights.mean()) < 3 * 0.02 / 256
    assert abs(weights.std() - 0.02) < 3 * 0.02 / (256 * 2**0.5)
    assert not head.linear.bias.any()
    x = torch.randn(4, 256)
    torch.testing.assert_close(head(x), torch.tanh(x @ weights.T))
