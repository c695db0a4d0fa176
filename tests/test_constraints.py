"""The versions that the tests are run with are those that setup.cfg names."""

import configparser
import re
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def needed():
    lines = SETUP["options"]["install_requires"] + SETUP["options.extras_require"]["test"]
    return {requirement.name: requirement for requirement in map(Requirement, filter(None, lines.split("\n")))}


def pinned(name):
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))


def test_the_lowest_versions_are_the_lower_bounds():
    bounds = {
        name: bound.version
        for name, requirement in needed().items()
        for bound in requirement.specifier
        if bound.operator == ">="
    }
    assert pinned("constraints-lowest.txt") == bounds


def test_the_newest_versions_are_within_the_ranges():
    versions = {name.replace("-", "_"): version for name, version in pinned("constraints.txt").items()}
    for name, requirement in needed().items():
        assert versions[name.replace("-", "_")] in requirement.specifier, name


def test_every_python_of_the_classifiers_is_tested():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    classifiers = re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == classifiers
    files = {*matrix["constraints"], *(row["constraints"] for row in matrix["include"])}
    assert files == {path.name for path in ROOT.glob("constraints*.txt")}
