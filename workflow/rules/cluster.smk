# What a job asks of a cluster besides threads and GPU slots. On one machine nothing limits it: memory is a number
# that a user may bound (--resources mem_mb=64000), gres is not asked for.
import math

from gradlab.gpu.slots import SLOT_GIB, peak_gib

HOST_GIB = 3  # Python, torch and the host's side of CUDA


def site(name):
    """What a cluster's profile says to all jobs under `default-resources`; None on one machine."""
    found = workflow.resource_settings.default_resources
    return found[name].raw if found is not None and name in found else None


def gres_of(slots):
    """Slurm's name for GPU slots, as `gpu_gres` of profiles/slurm asks for them; None: none."""
    kind = site("gpu_gres")
    if kind in (None, "none") or not slots:
        return None
    return f"{kind}:1" if kind.split(":")[0] == "gpu" else f"{kind}:{slots * int(site('gres_per_slot') or 1)}"


def memory_of(runs, attempt):
    """MiB of a job for these runs: what a GPU would hold, which without one the host does, and the rest."""
    try:
        model = peak_gib([run.config for run in runs], base_model(runs[0]))
    except ValueError:  # a model whose size cannot be told has a number of slots instead
        model = SLOT_GIB * max(1, slots_of("memory", runs))
    return 1024 * attempt * math.ceil(HOST_GIB + model)


def gres(wildcards):
    return gres_of(gpu_slots(wildcards))


def mem_mb(wildcards, attempt):
    return memory_of([run_of(wildcards)], attempt)


def pack_gres(wildcards):
    return gres_of(pack_slots(wildcards))


def pack_mem_mb(wildcards, attempt):
    return memory_of(members(wildcards), attempt)
