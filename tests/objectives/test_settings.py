import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from simcse_kit.objectives.settings import SECTIONS, InfoNCESettings, ObjectiveSettings, SoftmaxSettings

parse = TypeAdapter(ObjectiveSettings).validate_python


def test_settings_are_read_without_torch():
    code = "import sys; import simcse_kit.objectives.settings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_is_told_by_its_name_and_survives_a_round_trip(name):
    section = parse({"name": name, "weight": 0.15})
    assert type(section) is SECTIONS[name] and section.weight == 0.15
    assert parse(section.model_dump()) == section == parse(section)
    assert next(iter(section.model_dump())) == "name"
    assert section.over and section.over <= {"columns", "views"}
    assert 2 <= section.min_views <= section.max_views
    assert (section.num_classes is not None) == (section.labels == "class")


def test_a_section_without_a_name_is_info_nce():
    assert parse({"temperature": 0.1}) == InfoNCESettings(temperature=0.1)
    assert parse({}) == InfoNCESettings(weight=1.0, temperature=0.05, hard_negative_weight=0.0, symmetric=False)
    assert parse({}).similarity == "cosine"


def test_features_are_a_list_in_a_recipe_and_cannot_be_changed():
    section = parse({"name": "softmax", "features": ["u", "v", "max(u,v)^2"]})
    assert isinstance(section, SoftmaxSettings) and section.features == ("u", "v", "max(u,v)^2")


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ({"name": "infonce"}, "union_tag_invalid"),
        ({"temprature": 0.1}, "extra_forbidden"),
        ({"name": "cosent", "temperature": 0.1}, "extra_forbidden"),
        ({"temperature": 0.0}, "greater_than"),
        ({"similarity": "euclidean"}, "literal_error"),
        ({"name": "nt_xent", "temperature": -1}, "greater_than"),
        ({"name": "nt_xent", "reduction": "none"}, "literal_error"),
        ({"name": "consistency", "temperature": 0}, "greater_than"),
        ({"name": "cosent", "scale": float("inf")}, "finite_number"),
        ({"name": "angle", "scale": 0}, "greater_than"),
        ({"name": "cosine_regression", "max_score": 0}, "greater_than"),
        ({"name": "triplet", "margin": -0.1}, "greater_than_equal"),
        ({"name": "triplet", "distance": "manhattan"}, "literal_error"),
        ({"name": "margin_contrastive", "margin": 0}, "greater_than"),
        ({"name": "softmax", "features": []}, "too_short"),
        ({"name": "softmax", "features": ["u", "w"]}, "literal_error"),
        ({"name": "bilinear_info_nce", "weight": 0}, "greater_than"),
    ],
)
def test_settings_out_of_range_are_refused(section, kind):
    with pytest.raises(ValidationError) as caught:
        parse(section)
    assert [error["type"] for error in caught.value.errors()] == [kind]
