rule report:
    input:
        table="<results>/{sweep}/sweep.json",
        runs="<results>/{sweep}/runs.parquet",
        metrics="<results>/{sweep}/metrics.parquet",
        cosines="<results>/{sweep}/cosines.parquet",
        pairs="<results>/{sweep}/pairs.parquet",
        conflict="<results>/{sweep}/conflict.parquet",
        evals="<results>/{sweep}/evals.parquet",
        samples="<results>/{sweep}/samples.parquet",
        provenance=files_of_runs("provenance.json"),
        code=[*code("report/**/*"), "scripts/report.py"],
    output:
        "<results>/{sweep}/report.html",
    log:
        "<logs>/{sweep}/report.log",
    benchmark:
        "<logs>/{sweep}/report.jsonl"
    params:
        command=remake_command,
        results=subpath(output[0], ancestor=2),
    message:
        "report of sweep {wildcards.sweep}: {output}"
    shell:
        "exec python scripts/report.py --results {params.results} --sweep {wildcards.sweep} --out {output}"
        " --command {params.command:q} > {log} 2>&1"


rule index:
    input:
        reports=collect("<results>/{sweep}/report.html", sweep=chosen.sweeps),
        code=[*code("report/**/*"), "scripts/report.py"],
    output:
        "<results>/index.html",
    log:
        "<logs>/index.log",
    localrule: True
    params:
        results=subpath(output[0], parent=True),
    message:
        "list of all sweeps: {output}"
    shell:
        "exec python scripts/report.py --results {params.results} --index --out {output} > {log} 2>&1"
