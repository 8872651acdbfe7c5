"""What the project says of itself is true: README, recipe keys, packaging."""

import re
import tomllib
from pathlib import Path

import yaml

from simcse_kit.train.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_file_tree_of_the_readme_names_every_module():
    tree = README.split("## What lies where")[1]
    folders_summed_up = {"scenes", "cli"}
    modules = [path for path in (ROOT / "simcse_kit").rglob("*.py") if path.stem != "__init__"]
    listed = {path.name for path in modules if path.parent.name not in folders_summed_up}
    assert listed == set(re.findall(r"(\w+\.py) ", tree)) - {"__init__.py"}


def test_the_recipe_of_the_readme_shows_every_key_with_its_default():
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", README, re.S)[1])
    assert shown.pop("extends") is None
    recipe = Recipe.model_validate(shown).model_dump()
    for section, content in shown.items():
        full = recipe[section]
        defaults = {name: field.default for name, field in Recipe.model_fields.items()}[section]
        if isinstance(content, dict):
            rest = set(full) - set(content)
            assert rest <= {"revision", "allow_pickle", "trust_remote_code"}
            model = type(getattr(Recipe.model_validate(shown), section))
            for key, value in full.items():
                if not model.model_fields[key].is_required():
                    assert value == model.model_fields[key].default, f"{section}.{key}"
        elif not isinstance(content, list) and section != "output_dir":
            assert content == defaults


def test_only_the_package_is_installed_and_all_of_it():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["packages"]["find"]["include"] == ["simcse_kit*"]
    folders = {path.parent for path in (ROOT / "simcse_kit").rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
    package = ROOT / "simcse_kit"
    data = {path for pattern in settings["package-data"]["simcse_kit"] for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data == others
