# Runs that train in one process. `train` stays one job a run: it fetches what the pack has trained. Which runs are
# packed is decided when the first of them is asked for, and written for the jobs before the first one starts.
def runs_asked(sweep):
    """The runs that the targets of this call may need: those that are named, else all."""
    runs, folder = sweep_of(sweep).runs, f"{chosen.results}/{sweep}/runs/"
    targets = workflow.dag_settings.targets
    named = {t.removeprefix(folder).split("/")[0] for t in targets if t.startswith(folder)}
    others = tuple(f"{chosen.results}/{name}/" for name in chosen.sweeps if name != sweep)
    if not named or any(not t.startswith((folder, *others)) for t in targets):
        return list(runs.values())
    return [run for name, run in runs.items() if name in named]


plans = {}  # sweep -> pack -> its runs


def packs_of(sweep):
    if sweep not in plans:
        plans[sweep] = planned_packs(sweep) if workflow.is_main_process else written_packs(sweep)
    return plans[sweep]


def machine():
    cores = workflow.resource_settings.cores or 1
    return Machine(cores, tuple(gpu.memory_mib for gpu in capacity().gpus), cluster())


def fits_a_gpu(runs):
    here, base = capacity(), base_of(runs[0].base) if runs[0].base else None
    demand = readable(here.demand, [run.config for run in runs], base)
    return here.on_gpus is None or demand <= per_gpu(here.on_gpus, len(here.gpus))


def planned_packs(sweep):
    asked = sweep_of(sweep).config.pack if chosen.pack is None else chosen.pack
    if asked == 1:
        return {}
    work, results = Path("work") / sweep, Path(chosen.results) / sweep
    known = readable(measured, results / "calibration.json", machine())
    size = Sizing(asked, machine(), known, lambda run: base_of(run.base) if run.base else None, fits_a_gpu)
    return plan_sweep(runs_asked(sweep), size, results, work)


def written_packs(sweep):
    """For a job that Snakemake starts on another machine: what the main process planned."""
    path = Path("work") / sweep / "packs.json"
    written = read_json(path) if path.is_file() else {}
    return {name: [sweep_of(sweep)[run] for run in runs] for name, runs in written.items()}


def specs(runs):
    return {run.id: {"spec": run.spec, "evaluation": evaluation_of(run)} for run in runs}


def write_plans():
    """For those jobs and for `train_pack.py`: which runs each pack holds, with their specifications."""
    for sweep, packs in plans.items():
        if packs:
            write_json(f"work/{sweep}/packs.json", {name: specs(runs) for name, runs in packs.items()})
            print(
                f"sweep {sweep}: {sum(map(len, packs.values()))} runs train in {len(packs)} packs",
                file=sys.stderr,
            )


@functools.cache
def pack_by_run(sweep):
    return {run.id: name for name, runs in packs_of(sweep).items() for run in runs}


def marker(wildcards):
    """What the run's job waits for if its pack trains it."""
    name = pack_by_run(wildcards.sweep).get(wildcards.run)
    return ancient(f"work/{wildcards.sweep}/packs/{name}") if name else []


def members(wildcards):
    return packs_of(wildcards.sweep)[wildcards.pack]


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
