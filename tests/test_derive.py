"""A sweep made from another by a command: keys as users say them, values as YAML reads them, a file that lasts."""

import pytest
import yaml
from test_sweep import SWEEP, project  # noqa: F401  (a fixture)

from gradlab.config import RunConfig
from gradlab.explain import dotted_keys
from gradlab.launch.assignments import ALIASES, dotted_key, read_assignments
from gradlab.launch.derive import derive, write
from gradlab.sweep import load

pytestmark = pytest.mark.usefixtures("project")


def test_every_alias_means_a_key_that_exists_and_hides_none():
    keys = set(dotted_keys(RunConfig))
    assert set(ALIASES.values()) <= keys
    tops = {key for key in keys if "." not in key}
    assert not tops & ALIASES.keys()


@pytest.mark.parametrize(
    "name,key",
    [
        ("lr", "optimizer.lr"),
        ("max_steps", "steps"),
        ("steps", "steps"),
        ("seed", "seed"),
        ("rank", "adapter.rank"),
        ("temperature", "rollout.temperature"),
        ("probe.every", "probe.every"),
        ("brevity.weight", "objectives.brevity.weight"),
        ("objectives.brevity.params.target_words", "objectives.brevity.params.target_words"),
    ],
)
def test_short_names(name, key):
    assert dotted_key("--grid", name, ["brevity", "exactness"]) == key


def test_values_are_read_as_yaml_and_commas_in_lists_stay():
    texts = ['targets=["q_proj","v_proj"],all-linear', "seed=1,2", "max_grad_norm=null", "lr=1e-4"]
    assert read_assignments("--grid", texts, []) == {
        "adapter.targets": [["q_proj", "v_proj"], "all-linear"],
        "seed": [1, 2],
        "optimizer.max_grad_norm": [None],
        "optimizer.lr": ["1e-4"],  # as in a YAML file; the schema makes it a number
    }


def test_the_new_sweep_is_the_base_with_its_values_replaced():
    sweep = derive("test", ["seed=1,2,3", "beta=0,0.1"], ["max_steps=7", "lr=1e-4"])
    configs = [run.config for run in sweep.runs.values()]
    assert [(c.seed, c.algorithm.beta) for c in configs] == [(s, b) for s in (1, 2, 3) for b in (0.0, 0.1)]
    assert {(c.steps, c.optimizer.lr, c.rollout.batch_size) for c in configs} == {(7, 1e-4, 8)}


def test_the_name_depends_on_the_changes_alone():
    name = derive("test", ["seed=1,2"], pack=4).name
    assert name.startswith("test_")
    assert derive("test", ["seed=1,2"]).name == name
    assert derive("test", ["seed=1,3"]).name != name
    assert derive("test").name == "test"


def test_the_file_makes_the_same_runs_later_and_says_where_it_comes_from(project):  # noqa: F811
    sweep = derive("test", ["lr=1e-4,3e-4"], ["max_steps=7"], pack="2")
    path = write(sweep, ["python", "scripts/sweep.py", "--grid", "lr=1e-4,3e-4"])
    assert load(sweep.name) == sweep
    text = path.read_text()
    assert text.startswith("# Written by: python scripts/sweep.py --grid lr=1e-4,3e-4\n")
    assert "optimizer.lr: [1e-4, 3e-4]" in text
    assert load(sweep.name).config.pack == 2
    assert load("test").table()["title"] != sweep.table()["title"]


def test_a_file_of_the_same_runs_stands_and_another_is_not_overwritten(project):  # noqa: F811
    path = write(derive("test", ["seed=1"], name="mine"), ["first"])
    before = path.read_text()
    write(derive("test", ["seed=1"], name="mine", pack=2), ["second"])
    assert path.read_text() == before
    with pytest.raises(ValueError, match=r"mine.yaml: expected .* differs in grid.seed. Choose another --name"):
        write(derive("test", ["seed=2"], name="mine"), ["third"])
    assert path.read_text() == before


def test_variants_can_be_chosen(project):  # noqa: F811
    sweep = yaml.safe_load(SWEEP) | {"variants": {"free": {}, "leash": {"algorithm.beta": 0.1}, "other": {"steps": 9}}}
    (project / "config/sweeps/test.yaml").write_text(yaml.safe_dump(sweep))
    chosen = derive("test", variants=["free", "leash"])
    assert {run.varies["variant"] for run in chosen.runs.values()} == {"free", "leash"}
    with pytest.raises(ValueError, match="--variants: expected one of free, leash, other; found 'leesh'"):
        derive("test", variants=["leesh"])


MISTAKES = {
    "no such base": ({"base": "tset"}, "sweeps: expected one of test; found 'tset'. Did you mean 'test'?"),
    "no value": ({"grid": ["seed="]}, "--grid seed: expected at least one value; found none"),
    "no equals sign": ({"grid": ["seed"]}, "--grid: expected key=value; found 'seed'"),
    "no key": ({"grid": ["=1"]}, "--grid: expected key=value"),
    "unknown key": ({"grid": ["sed=1"]}, "--grid sed: expected a known key; found 'sed'. Did you mean seed"),
    "unknown dotted key": ({"fixed": ["optimiser.lr=1"]}, "Did you mean 'optimizer.lr'?"),
    "ambiguous key": ({"grid": ["kind=lora"]}, "expected one key; found adapter.kind and objectives.brevity.kind"),
    "two values fixed": ({"fixed": ["lr=1,2"]}, "--fixed optimizer.lr: expected one value; found 2"),
    "out of range": ({"grid": ["lr=-1"]}, "optimizer.lr: expected greater than or equal to 0; found -1"),
    "not a number": ({"grid": ["lr=fast"]}, "optimizer.lr: expected a valid number"),
    "twice": ({"grid": ["lr=1", "learning_rate=2"]}, "expected optimizer.lr once; found it again"),
    "grid and fixed": ({"grid": ["lr=1"], "fixed": ["lr=2"]}, "expected in --grid or in --fixed; found in both"),
    "equal runs": ({"grid": ["seed=1,1"]}, "expected points that differ in what is trained"),
    "open bracket": ({"grid": ["targets=[q_proj"]}, "--grid targets: expected values with commas between them"),
    "a slash in the name": ({"name": "a/b"}, "name of a sweep: expected letters, digits, _ and -"),
    "the models' folder": ({"name": "base"}, "name of a sweep"),
    "pack 0": ({"pack": "0"}, "pack: expected greater than or equal to 1"),
}


@pytest.mark.parametrize("arguments,message", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_explained(arguments, message):
    with pytest.raises(ValueError) as error:
        derive(**{"base": "test"} | arguments)
    assert message in str(error.value)
