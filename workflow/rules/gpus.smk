# GPU slots: what a job asks of the resource `gpu_slots`, how they are shared out among this machine's GPUs, and MPS.
from gradlab.gpu.devices import gpus, runtime_folder
from gradlab.gpu.slots import Capacity
from gradlab.gpu.mps import Mps


def cluster():
    """Whether jobs run elsewhere, on GPUs that the cluster gives them: nothing here is counted or bound."""
    return site("gpu_gres") is not None or workflow.remote_exec or not workflow.local_exec


@functools.cache
def gpus_here():
    return readable(gpus)


def capacity():
    """What this call offers; asked anew, because Snakemake chooses its executor after it has read this file.

    The Snakemake call inside a cluster's job has the default profile's limit, which is not what the jobs share.
    """
    limits = workflow.resource_settings.resources
    limit = limits["gpu_slots"].value if workflow.is_main_process and "gpu_slots" in limits else None
    return Capacity(limit, () if cluster() else gpus_here(), cluster(), chosen.gpu_slot_gib)


def slots_of(name, runs):
    """GPU slots of the job `name` that trains or evaluates these runs in one process; 0 where there is no GPU."""
    return readable(capacity().ask, name, [run.config for run in runs], base_model(runs[0]))


def gpu_slots(wildcards):
    return slots_of(f"{wildcards.sweep}/{wildcards.run}", [run_of(wildcards)])


@functools.cache
def mps():
    """This call's part in MPS, begun when first asked for."""
    if not workflow.is_main_process or workflow.touch:
        return Mps("not asked for")
    if cluster():
        return Mps("left to the cluster")
    return Mps.begin(gpus_here(), runtime_folder())


def begin_mps():
    if mps().note:
        print(mps().note, file=sys.stderr)
    os.environ.update(mps().environment)


# What a job learns of the slots. One on a cluster keeps the GPUs it was given.
if workflow.is_main_process and capacity().on_gpus is not None:
    os.environ.update(GRADLAB_GPU_SLOTS=str(capacity().on_gpus))
else:
    os.environ.pop("GRADLAB_GPU_SLOTS", None)

for name in chosen.sweeps if workflow.is_main_process else ():
    for run in sweep_of(name).runs.values():
        slots_of(f"{name}/{run.id}", [run])  # too large a job stops the call before the first one starts
