"""What holds for every objective: each test walks the registry, so that a new one is tested or fails."""

import inspect
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_losses import CHANGES, CLOSED_FORMS, EVERY_CASE, SPECS, VARIANTS, draw, draw_labels, make, parameters_of
from torch.utils._python_dispatch import TorchDispatchMode

from simcse_kit.objectives import OBJECTIVES, build_objective
from simcse_kit.objectives.settings import SECTIONS

every_case = pytest.mark.parametrize(("name", "views", "options"), EVERY_CASE)
every_objective = pytest.mark.parametrize("name", sorted(OBJECTIVES))


def value(module, views, labels=None):
    (loss,) = module(views, labels).values()
    return loss


@every_objective
def test_an_objective_has_settings_a_naive_reference_a_closed_form_and_invariances(name):
    spec, section = SPECS[name], SECTIONS[name]
    assert all(keeps and keeps <= CHANGES.keys() for keeps in [spec.keeps, *(keeps for _, keeps in spec.variants)])
    assert {views for views, _ in spec.cases} == set(range(section.min_views, section.max_views + 1))
    assert SPECS.keys() == SECTIONS.keys() == OBJECTIVES.keys()


@every_case
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_it_equals_its_formula_written_as_loops(name, views, options, rows):
    module, vectors, labels = make(name, options), draw(views, rows), draw_labels(name, rows)
    terms = module(vectors, labels)
    assert list(terms) == [name] and terms[name].shape == ()
    inputs = [view.tolist() for view in vectors] + ([] if labels is None else [labels.tolist()])
    expected = SPECS[name].naive(*inputs, **options, **parameters_of(module))
    assert terms[name].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("name", "views", "options"), CLOSED_FORMS)
@pytest.mark.parametrize("rows", [1, 4, 9])
def test_equal_vectors_have_the_closed_form(name, views, options, rows):
    module, labels = make(name, options), draw_labels(name, rows, seed=1)
    made = {"rows": rows, "labels": None if labels is None else labels.tolist(), **parameters_of(module)}
    expected = SPECS[name].equal(**made, views=views, **options)
    same = draw(1, 1)[0].expand(rows, -1)
    assert value(module, [same] * views, labels).item() == pytest.approx(expected, abs=1e-9)


@every_case
def test_it_has_the_gradient_of_its_value_for_views_and_parameters(name, views, options):
    module, labels = make(name, options, width=4), draw_labels(name, rows=3, seed=2)
    names = [key for key, _ in module.named_parameters()]
    inputs = [*draw(views, rows=3, width=4, seed=1), *(each.detach() for each in module.parameters())]

    def loss(*inputs):
        parameters = dict(zip(names, inputs[views:], strict=True))
        return torch.func.functional_call(module, parameters, (inputs[:views], labels))[name]

    assert torch.autograd.gradcheck(loss, [each.requires_grad_() for each in inputs])


@pytest.mark.parametrize(
    ("name", "options", "change"),
    [(name, options, change) for name, options, keeps in VARIANTS for change in sorted(keeps)],
)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6))
def test_it_is_unchanged_by_what_should_not_matter(name, options, change, seed, rows):
    vectors, labels = draw(SECTIONS[name].max_views, rows, seed=seed), draw_labels(name, rows)
    module = make(name, options)
    changed = value(module, *CHANGES[change](vectors, labels, seed + 1))
    assert changed.item() == pytest.approx(value(module, vectors, labels).item(), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "change"),
    [
        (name, options, change)
        for name, options, keeps in VARIANTS
        for change in sorted(CHANGES.keys() - keeps)
        if SECTIONS[name].labels == "score" or change != "range of the golds"
    ],
)
def test_it_is_changed_by_everything_else(name, options, change):
    module, vectors, labels = make(name, options), draw(SECTIONS[name].max_views, rows=6), draw_labels(name, 6)
    changed = value(module, *CHANGES[change](vectors, labels, 1))
    assert abs(changed.item() - value(module, vectors, labels).item()) > 1e-3


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vectors_are_compared_in_single_precision(name, views, options, dtype):
    vectors, labels = [view.to(dtype) for view in draw(views, 16)], draw_labels(name, 16)
    loss = value(make(name, options, dtype=torch.float32), vectors, labels)
    exact = value(make(name, options), [view.double() for view in vectors], labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-5)


@every_case
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("vector", [0.0, 1.0])
def test_zero_and_equal_vectors_have_a_finite_loss_and_gradient(name, views, options, rows, vector):
    vectors = [torch.full((rows, 6), vector, requires_grad=True) for _ in range(views)]
    module = make(name, options, dtype=torch.float32)
    loss = value(module, vectors, draw_labels(name, rows))
    loss.backward()
    assert loss.isfinite()
    assert all(each.grad.isfinite().all() for each in (*vectors, *module.parameters()))


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            # An expanded view takes no memory.
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.untyped_storage().nbytes() // each.element_size())
        return out


@every_case
def test_no_tensor_has_rows_times_rows_times_width_elements(name, views, options):
    rows, width = 32, 48
    vectors = [view.requires_grad_() for view in draw(views, rows, width)]
    module, labels = make(name, options, width), draw_labels(name, rows)
    with LargestTensor() as largest:
        value(module, vectors, labels).backward()
    inputs = max(each.numel() for each in (*vectors, *module.parameters()))
    assert inputs <= largest.elements <= max(4 * rows * rows, 5 * rows * width)


@every_objective
def test_built_from_its_section_it_has_the_defaults_of_the_function(name):
    section, factory = SECTIONS[name](), OBJECTIVES[name]
    function = factory.args[0] if isinstance(factory, partial) else factory
    options = {
        key: each.default
        for key, each in inspect.signature(function).parameters.items()
        if each.kind == each.KEYWORD_ONLY and each.default is not each.empty
    }
    if "num_classes" in options:
        assert options.pop("num_classes") == section.num_classes
    assert section.model_dump(exclude={"name", "weight"}) == options

    views, labels = draw(section.max_views, 5, dtype=torch.float32), draw_labels(name, 5)
    module = build_objective(section.model_copy(update={"weight": 7.0}), width=6)
    assert bool(list(module.parameters())) == section.learned
    expected = OBJECTIVES[name](**({"width": 6} if section.learned else {}))
    expected.load_state_dict(module.state_dict())
    assert value(module, views, labels).item() == value(expected, views, labels).item()


@every_case
def test_the_options_of_a_section_reach_the_objective(name, views, options):
    module = build_objective(SECTIONS[name](**options), width=6).double()
    expected = make(name, options)
    module.load_state_dict(expected.state_dict())
    vectors, labels = draw(views, 5), draw_labels(name, 5)
    assert value(module, vectors, labels).item() == value(expected, vectors, labels).item()


@every_objective
def test_it_depends_on_labels_if_and_only_if_its_section_says_so(name):
    module, vectors = make(name, {}), draw(SECTIONS[name].max_views, 8)
    if SECTIONS[name].labels is None:
        assert value(module, vectors).item() == value(module, vectors, torch.arange(8) % 2).item()
    else:
        one, other = torch.arange(8) % 2, (torch.arange(8) + 1) % 2
        assert value(module, vectors, one).item() != value(module, vectors, other).item()
