# The runs of a sweep and what varies among them, by file: a command line would not hold thousands of ids.
rule sweep_table:
    output:
        "<results>/{sweep}/sweep.json",
    log:
        "<logs>/{sweep}/sweep.log",
    localrule: True  # a second of work
    params:
        table=table_digest,
        fixed=canonical(chosen.fixed),
        grid=canonical(chosen.grid),
    message:
        "list the runs of sweep {wildcards.sweep}"
    shell:
        "exec python scripts/sweep_table.py {wildcards.sweep} --fixed {params.fixed:q} --grid {params.grid:q}"
        " --out {output} > {log} 2>&1"


rule aggregate:
    input:
        table="<results>/{sweep}/sweep.json",
        runs=files_of_runs(
            "outcome.json",
            "metrics.jsonl",
            "samples.jsonl",
            "probe",
            "eval.json",
            "eval_samples.jsonl",
        ),
        code=code("aggregate/*.py", "inference/*.py", "grams.py", "outcome.py"),
    output:
        runs="<results>/{sweep}/runs.parquet",
        metrics="<results>/{sweep}/metrics.parquet",
        cosines="<results>/{sweep}/cosines.parquet",
        pairs="<results>/{sweep}/pairs.parquet",
        conflict="<results>/{sweep}/conflict.parquet",
        evals="<results>/{sweep}/evals.parquet",
        samples="<results>/{sweep}/samples.parquet",
    log:
        "<logs>/{sweep}/aggregate.log",
    benchmark:
        "<logs>/{sweep}/aggregate.jsonl"
    params:
        results=subpath(output.metrics, ancestor=2),
    message:
        "aggregate sweep {wildcards.sweep}"
    shell:
        "exec python scripts/aggregate.py --results {params.results} --sweep {wildcards.sweep} > {log} 2>&1"
