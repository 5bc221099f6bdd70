# Asked for by name only: `snakemake calibrate`. What it writes, `pack: auto` reads.
rule calibrate_sweep:
    input:
        bases=sweep_bases,
    output:
        "<results>/{sweep}/calibration.json",
    log:
        "<logs>/{sweep}/calibrate.log",
    threads: workflow.resource_settings.cores or 1  # a call for a cluster names none
    params:
        fixed=canonical(chosen.fixed),
        grid=canonical(chosen.grid),
        results=subpath(output[0], ancestor=2),
    message:
        "measure pack sizes for sweep {wildcards.sweep}, alone on the machine"
    shell:
        "exec python scripts/calibrate.py {wildcards.sweep} --results {params.results}"
        " --fixed {params.fixed:q} --grid {params.grid:q} > {log} 2>&1"


rule calibrate:
    input:
        collect("<results>/{sweep}/calibration.json", sweep=chosen.sweeps),
