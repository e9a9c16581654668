"""How many small faults in the numerics do the tests catch? No test itself: it runs them on one fault after another.

    python -m tests.mutation sample --count 80             # once: choose faults, write tests/mutants.json
    python -m tests.mutation run --label before --jobs 2   # what becomes of each; "after" on a later tree
    python -m tests.mutation report                        # the tables, and what differs between two labels
    python -m tests.mutation check                         # what `run` does first: do the tests pass unchanged?

A mutant is one small change to one function. It is known by the function, the kind of change and the text of what is
changed, not by file or line, so that it is found again after files have moved; ``run --renamed Old=New`` tells names
that have changed, and what is still not found is reported. A run that is stopped goes on where it was. The tree is not
written to: the parent imports the heavy libraries and forks for each mutant, and the child compiles the changed source
when the tests import that module.
"""

import argparse
import ast
import collections
import functools
import importlib.util
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fedddpm_app"
LIST = ROOT / "tests" / "mutants.json"
# Where the code under test is, or was; what is not there is passed over.
SOURCES = ("algorithms/*.py", "federation/aggregation.py", "evaluation/distances.py", "weights.py")
SOURCES += ("training.py", "training/trainer.py", "training/batches.py", "optimization.py", "training/optimization.py")
# Names of test files, wherever they lie under tests/; the quickest first, as the first failure ends a run.
LOOP_TESTS = "trainer training weights simulate fedavg fedprox centralized local_only scaffold moon registry"
LOOP_TESTS += " aggregation fedddpm fedddpm_plus aux_only examples acceleration fednova properties feddyn"
ALGORITHM_TESTS = "registry simulate aggregation examples acceleration properties"
TESTS = {
    "distances": "distances",
    "aggregation": f"aggregation {LOOP_TESTS}",
    "weights": f"weights {LOOP_TESTS}",  # with those of distances, all: what is checked first
    "fedddpm": f"fedddpm fedddpm_plus aux_only scaffold {ALGORITHM_TESTS}",
    "__init__": ALGORITHM_TESTS,
} | dict.fromkeys(("training", "trainer", "batches", "optimization"), LOOP_TESTS)
TEST_LIMIT, MUTANT_LIMIT = 90, 1200  # seconds of one test, whose slowest takes 14, and of one mutant
CAUGHT = ("killed", "timed out")
HEAVY = "torch._dynamo diffusers.models.unets.unet_2d diffusers.training_utils datasets flwr.clientapp flwr_datasets"
HEAVY += " flwr.serverapp.strategy flwr_datasets.partitioner matplotlib.pyplot pydantic rich.progress scipy.stats typer"
HEAVY += " sklearn.datasets sklearn.decomposition torchmetrics.image.inception torchmetrics.image.kid hypothesis pytest"
PAIRS = [(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.And, ast.Or)]
NEGATING_PAIRS = [(ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)]
NEGATING = dict(NEGATING_PAIRS) | {b: a for a, b in NEGATING_PAIRS}
SWAPS = dict(PAIRS) | {b: a for a, b in PAIRS} | {ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult} | NEGATING
SILENT = re.compile(r"((logger|warnings|gc|progress)\.\w+|note)\(")  # calls that only tell, or only save memory
SKIPPED_FIELDS = ("annotation", "returns", "decorator_list", "slice")
SKIPPED_NODES = (ast.Raise, ast.JoinedStr, ast.arguments, ast.pattern)
# Changes after which a function does the same, by its name and the new text: none is chosen. One that is found out
# later stays in the list, with the reason under "equivalent".
HARMLESS = {
    ("AggregationRule._step", "{NUM_EXAMPLES: 2}"),  # the weight of the only reply
    ("Scaffold.aggregate", "changes.fold(reply.load(VARIATE_CHANGE), 2.0)"),  # a mean, whose total is not asked for
    ("Trainer.train", "steps >= 0"),  # the moving average of no steps is the start
    ("Trainer.train", "time.perf_counter() + began"),  # only told
    ("learning_rate_factor", "max(2, steps - warmup_steps)"),  # of one step, the numerator is 0
    ("learning_rate_factor", "step <= warmup_steps"),  # the factor is 1 there on either side
    ("least_replies", "itertools.count(2)"),  # a share cuts off none of one
    ("shuffled_batches", "len(pending) <= batch_size"),  # the same permutations, one drawn earlier
}


class Mutant(NamedTuple):
    """A change, known without file and line; ``occurrence`` counts equal ones in a function."""

    function: str
    kind: str
    text: str
    mutated: str
    occurrence: int


class Place(NamedTuple):
    """A node in a function, where its parent keeps it, and the expression around it."""

    function: str
    node: ast.AST
    parent: ast.AST
    field: str
    index: int | None
    around: ast.AST

    def put(self, node: ast.AST) -> None:
        """Replace the node."""
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def places(node: ast.AST, name: str = "", inside: bool = False, around: ast.AST | None = None) -> Iterator[Place]:
    """Yield the nodes of all functions that may be changed."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        name, inside = f"{name}.{node.name}".lstrip("."), isinstance(node, ast.FunctionDef)
    around = around if isinstance(node, ast.UnaryOp) else node
    for field, value in ast.iter_fields(node):
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if field in SKIPPED_FIELDS or not isinstance(child, ast.AST) or isinstance(child, SKIPPED_NODES):
                continue
            if isinstance(child, ast.Expr | ast.Call) and SILENT.match(ast.unparse(child)):
                continue
            if inside:
                yield Place(name, child, node, field, i if isinstance(value, list) else None, around)
            yield from places(child, name, inside, around)


def changed(node: ast.AST, **fields: Any) -> ast.AST:
    """Return a shallow copy of a node with other fields."""
    return ast.copy_location(type(node)(**dict(ast.iter_fields(node)) | fields), node)


def changes(place: Place) -> Iterator[tuple[str, ast.AST]]:
    """Yield the kind of each change that can be made at a place, and the new node."""
    match node := place.node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            yield "and-or" if isinstance(node, ast.BoolOp) else "arithmetic", changed(node, op=SWAPS[type(op)]())
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield "comparison", changed(node, ops=[*ops[:i], SWAPS[type(op)](), *ops[i + 1 :]])
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "minus", operand
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            yield "number", ast.Constant(value + 1)
        case ast.Return(value=ast.Constant(value=bool() as value)):
            yield "return", changed(node, value=ast.Constant(not value))
        case ast.Return(value=ast.Name() | ast.Attribute()):
            yield "return", changed(node, value=ast.Constant(None))
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "deletion", ast.Pass()
    if place.field == "ifs" or (place.field == "test" and isinstance(place.parent, ast.If | ast.IfExp)):
        match node:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield "negation", operand
            case ast.Compare(ops=[op]) if type(op) in NEGATING:
                pass  # to swap the operator is to negate
            case _:
                yield "negation", ast.UnaryOp(ast.Not(), node)


def mutants(tree: ast.Module) -> Iterator[Mutant]:
    """Yield every mutant of a module, while the tree is changed to it; texts that are long are left out."""
    seen: collections.Counter[tuple[str, ...]] = collections.Counter()
    for place in list(places(tree)):
        for kind, new in changes(place):
            context = place.around if kind in ("number", "minus") else None  # a number alone says little
            text = ast.unparse(context or place.node)
            place.put(new)
            identity = (place.function, kind, text, ast.unparse(context or new))
            if "\n" not in text and len(text) <= 120 and (place.function, identity[3]) not in HARMLESS:
                yield Mutant(*identity, seen[identity])
                seen[identity] += 1
            place.put(place.node)


@functools.cache
def known() -> dict[Path, list[Mutant]]:
    """Return all mutants of the tree, by file."""
    paths = sorted({path for pattern in SOURCES for path in PACKAGE.glob(pattern)})
    return {path: list(mutants(ast.parse(path.read_text()))) for path in paths}


def find(row: dict[str, Any], names: dict[str, str]) -> tuple[Path, Mutant] | None:
    """Find a listed mutant in this tree: by its function, or else where its text alone says which it is."""
    texts = json.dumps([row[field] for field in Mutant._fields])
    for old, new in names.items():
        texts = re.sub(rf"\b{re.escape(old)}\b", new, texts)
    wanted = Mutant(*json.loads(texts))
    everything = [(path, mutant) for path, of_file in known().items() for mutant in of_file]
    exact = [hit for hit in everything if hit[1] == wanted]
    hits = [hit for hit in exact if hit[0].stem == Path(row["file"]).stem] or exact
    hits = hits or [hit for hit in everything if hit[1][1:4] == wanted[1:4]]
    return hits[0] if len(hits) == 1 else None


def sample(count: int, seed: int) -> list[dict[str, Any]]:
    """Choose mutants: of each file by its number of them but at least 2, taking turns among the kinds."""
    total, rows = sum(map(len, known().values())), []
    for path, of_file in known().items():
        file = str(path.relative_to(PACKAGE))
        shuffled = random.Random(f"{seed} {file}").sample(of_file, len(of_file))
        kinds = dict.fromkeys(mutant.kind for mutant in shuffled)
        by_kind = [[mutant for mutant in shuffled if mutant.kind == kind] for kind in kinds]
        turns = [mutant for turn in itertools.zip_longest(*by_kind) for mutant in turn if mutant]
        chosen = turns[: max(2, round(count * len(of_file) / total))]
        rows += [{"file": file, **mutant._asdict()} for mutant in chosen]
    return rows


class ChangedModule(SourceFileLoader):
    """Finds and loads one module, changed to a mutant."""

    def __init__(self, path: Path, mutant: Mutant | None) -> None:
        parts = path.relative_to(ROOT).with_suffix("").parts
        super().__init__(".".join(parts).removesuffix(".__init__"), str(path))
        self.tree = ast.parse(path.read_text())
        if mutant:
            next(found for found in mutants(self.tree) if found == mutant)  # leaves the tree changed
        ast.fix_missing_locations(self.tree)
        self.loaded = False

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, _: str) -> CodeType:
        self.loaded = True
        return compile(self.tree, self.path, "exec")


class FirstFailure:
    """A pytest plugin that keeps what fails first, and what it says."""

    name = says = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name, self.says = report.nodeid, str(report.longrepr)

    pytest_collectreport = pytest_runtest_logreport


def tests_of(path: Path) -> list[str]:
    """Return the test files that are to catch the mutants of a file, in the order in which they run."""
    names = TESTS.get(path.stem, f"{path.stem} {ALGORITHM_TESTS}").split()
    return [str(file) for name in dict.fromkeys(names) for file in sorted((ROOT / "tests").rglob(f"test_{name}.py"))]


def run_tests(path: Path, mutant: Mutant | None, folder: Path) -> None:
    """Run the tests of a file, changed to a mutant or as it is, in a child; leave the verdict in ``folder``."""
    import pytest

    os.setsid()
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
    module, failure = ChangedModule(path, mutant), FirstFailure()
    sys.meta_path.insert(0, module)
    options = f"-x -q -p no:cacheprovider -p no:xdist -o addopts= -o timeout={TEST_LIMIT} --hypothesis-seed=0".split()
    options += ["-m", "not slow and not long", f"--basetemp={folder / 'temp'}"]
    code = pytest.main([*options, *tests_of(path)], plugins=[failure])
    verdict = "timed out" if "Timeout (>" in failure.says else "killed" if code else "survived"
    if code == pytest.ExitCode.NO_TESTS_COLLECTED or not module.loaded:
        verdict = "not run"
    (folder / "verdict.json").write_text(json.dumps({"verdict": verdict, "by": failure.name}))


class Run:
    """A child that runs the tests on one mutant."""

    def __init__(self, path: Path, mutant: Mutant | None) -> None:
        self.folder, self.began = Path(tempfile.mkdtemp(prefix="mutant-")), time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            try:
                run_tests(path, mutant, self.folder)
            finally:
                traceback.print_exc()
                os._exit(0)

    def result(self) -> dict[str, Any] | None:
        """Return what became of the mutant; None while the tests run."""
        seconds = time.monotonic() - self.began
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid and seconds < MUTANT_LIMIT:
            return None
        if not pid:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        result = {"verdict": "killed" if os.WIFSIGNALED(status) else "not run" if pid else "timed out", "by": ""}
        if (self.folder / "verdict.json").exists():
            result = json.loads((self.folder / "verdict.json").read_text())
        if result["verdict"] == "not run":
            sys.stderr.write((self.folder / "output.txt").read_text(errors="replace")[-3000:])
        shutil.rmtree(self.folder, ignore_errors=True)
        return result | {"seconds": round(seconds, 1)}


def prepare() -> None:
    """Import what is slow to import and is not under test, and check that a fork is safe."""
    for name in HEAVY.split():
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    sys.dont_write_bytecode = True
    os.chdir(ROOT)
    package = importlib.util.find_spec("fedddpm_app")
    assert package is not None
    assert package.origin == str(PACKAGE / "__init__.py"), "start in the root of the tree that is to be tested"
    assert threading.active_count() == 1
    assert not any(name.startswith("fedddpm_app") for name in sys.modules)


def run_all(jobs: list[tuple[dict[str, Any], Path, Mutant | None]], at_once: int) -> Iterator[tuple[Any, Any]]:
    """Run the tests on each mutant; yield its row, and what became of it, as they end."""
    waiting, running = jobs[::-1], []
    while waiting or running:
        if waiting and len(running) < at_once:
            row, path, mutant = waiting.pop()
            running.append((row, Run(path, mutant)))
        for row, run in list(running):
            if result := run.result():
                running.remove((row, run))
                done = f"{len(jobs) - len(waiting) - len(running)}/{len(jobs)}"
                say(f"{done} {result['verdict']:9} {result['seconds']:6.1f} s  {shown(row)}  {result['by']}")
                yield row, result
        time.sleep(0.05)


def shown(row: dict[str, Any]) -> str:
    return f"{row['file']} {row['function']}: {row['text']} -> {row['mutated']}" if "text" in row else row["file"]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def report(rows: list[dict[str, Any]]) -> None:
    """Print, for each label, the verdicts by file and the survivors; then what two labels differ in."""
    labels = [key for key, value in rows[0].items() if isinstance(value, dict)]
    for label in labels:
        verdicts = sorted({row[label]["verdict"] for row in rows})
        say(f"\n{label:32}" + "".join(f"{verdict:>11}" for verdict in verdicts))
        for file in [*dict.fromkeys(row["file"] for row in rows), "all"]:
            counts = collections.Counter(row[label]["verdict"] for row in rows if file in (row["file"], "all"))
            say(f"  {file:30}" + "".join(f"{counts[verdict]:11}" for verdict in verdicts))
        for row in rows:
            if row[label]["verdict"] not in CAUGHT:
                why = f" (equivalent: {row['equivalent']})" if "equivalent" in row else ""
                say(f"  {row[label]['verdict']}: {shown(row)}{why}")
    for row in rows:
        verdicts = [row[label]["verdict"] for label in labels]
        if len({"killed" if verdict in CAUGHT else verdict for verdict in verdicts}) > 1:
            say(f"{' / '.join(labels)}: {' / '.join(verdicts)}: {shown(row)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="How many small faults in the numerics do the tests catch?")
    parser.add_argument("what", choices=("sample", "check", "run", "report"))
    parser.add_argument("--count", type=int, default=80, help="sample: how many mutants, about")
    parser.add_argument("--seed", type=int, default=0, help="sample: another seed chooses others")
    parser.add_argument("--label", default="after", help="run: what the verdicts are called in the list")
    parser.add_argument("--jobs", type=int, default=1, help="run, check: processes at once")
    parser.add_argument("--renamed", action="append", default=[], metavar="OLD=NEW", help="run: a name that changed")
    given = parser.parse_args()
    if given.what == "sample":
        LIST.write_text(json.dumps(sample(given.count, given.seed), indent=1) + "\n")
        return
    rows = json.loads(LIST.read_text())
    if given.what != "report":
        prepare()
        unchanged = [({"file": path.stem}, path, None) for path in known() if path.stem in ("weights", "distances")]
        if any(result["verdict"] != "survived" for _, result in list(run_all(unchanged, given.jobs))):
            sys.exit("The tests fail while nothing is changed: what they make of mutants would say nothing.")
    if given.what == "run":
        names, jobs = dict(pair.split("=", 1) for pair in given.renamed), []
        for row in rows:
            if row.get(given.label, {}).get("verdict") not in (*CAUGHT, "survived"):
                hit = find(row, names)
                row[given.label] = {"verdict": "not run" if hit else "not found", "by": "", "seconds": 0.0}
                jobs += [(row, *hit)] if hit else []
        for row, result in run_all(jobs, given.jobs):
            row[given.label] = result
            LIST.write_text(json.dumps(rows, indent=1) + "\n")
    if given.what != "check":
        report(rows)


if __name__ == "__main__":
    main()
