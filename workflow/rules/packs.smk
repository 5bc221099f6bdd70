# Runs that train in one process. `train` stays one job a run: it fetches what the pack has trained. Which runs are
# packed is decided when the first of them is asked for, and written for the jobs before the first one starts: a file
# a pack, since several calls may be at work.
def runs_asked(sweep):
    """The runs that the targets of this call may need: those that are named, else all."""
    runs, named = sweep_of(sweep).runs, set()
    for target in map(Path, workflow.dag_settings.targets):
        inside = target.relative_to(chosen.results).parts if target.is_relative_to(chosen.results) else ()
        if len(inside) > 1 and inside[0] != sweep:
            continue  # a file of another sweep
        if inside[1:2] != ("runs",) or len(inside) < 3:
            return list(runs.values())
        named.add(inside[2])
    return [run for name, run in runs.items() if name in named or not named]


plans = {}  # sweep -> pack -> its runs


def packs_of(sweep):
    if sweep not in plans:
        plans[sweep] = planned_packs(sweep)
    return plans[sweep]


def planned_packs(sweep):
    asked = sweep_of(sweep).config.pack if chosen.pack is None else chosen.pack
    results, cores = Path(chosen.results) / sweep, workflow.resource_settings.cores or 1
    known = readable(measured, results / "calibration.json", capacity().gpus)
    size = Sizing(asked, cores, capacity(), known, base_model)
    packs = readable(plan_sweep, runs_asked(sweep), size, results, Path("work") / sweep)
    if packs and workflow.execution_settings.no_hooks:
        raise WorkflowError("--no-hooks: expected only with pack=1; found packs, whose plans a hook writes.")
    return packs


def plan_file(sweep, pack):
    return Path("work", sweep, "packs", f"{pack}.json")


def write_plans():
    """For `train_pack.py`, here or on another machine: which runs a pack holds, with their specifications."""
    for sweep, packs in plans.items():
        for name, runs in packs.items():
            specs = {run.id: {"spec": run.spec, "evaluation": evaluation_of(run)} for run in runs}
            write_json(plan_file(sweep, name), specs)
        if packs:
            print(
                f"sweep {sweep}: {sum(map(len, packs.values()))} runs train in {len(packs)} packs",
                file=sys.stderr,
            )
        elif chosen.pack not in (None, 1):
            print(
                f"sweep {sweep}: no packs, as no two runs left to train gain by one (docs/scaling.md)", file=sys.stderr
            )


def remove_plans():
    for sweep, packs in plans.items():
        for name in packs:
            plan_file(sweep, name).unlink(missing_ok=True)


@functools.cache
def pack_by_run(sweep):
    return {run.id: name for name, runs in packs_of(sweep).items() for run in runs}


def marker(wildcards):
    """What the run's job waits for if its pack trains it; the main process has done the waiting for other machines."""
    name = pack_by_run(wildcards.sweep).get(wildcards.run) if workflow.is_main_process else None
    return ancient(f"work/{wildcards.sweep}/packs/{name}") if name else []


def members(wildcards):
    if workflow.is_main_process:
        return packs_of(wildcards.sweep)[wildcards.pack]
    return [sweep_of(wildcards.sweep)[run] for run in read_json(plan_file(wildcards.sweep, wildcards.pack))]


def pack_bases(wildcards):
    return sorted({f"{chosen.results}/base/{run.base}/base.json" for run in members(wildcards) if run.base})


def pack_data(wildcards):
    return sorted({path for run in members(wildcards) for path in run.config.data.train})


def pack_size(wildcards):
    return len(members(wildcards))


def pack_threads(wildcards):
    return members(wildcards)[0].config.placement.threads


def pack_slots(wildcards):
    return slots_of(f"pack {wildcards.sweep}/{wildcards.pack}", members(wildcards))


def pack_placement(wildcards, threads):
    given = {"threads": threads, "gpu_slots": pack_slots(wildcards)}
    return placement_flags(members(wildcards)[0].config.placement.model_copy(update=given))


def sweep_bases(wildcards):
    runs = sweep_of(wildcards.sweep).runs.values()
    return sorted({f"{chosen.results}/base/{run.base}/base.json" for run in runs if run.base})
