rule train:
    input:
        base=run_base,
        data=train_data,
        pack=marker,
    output:
        config="<results>/{sweep}/runs/{run}/config.json",
        metrics="<results>/{sweep}/runs/{run}/metrics.jsonl",
        samples="<results>/{sweep}/runs/{run}/samples.jsonl",
        outcome="<results>/{sweep}/runs/{run}/outcome.json",
        provenance="<results>/{sweep}/runs/{run}/provenance.json",
        adapter=directory("<results>/{sweep}/runs/{run}/adapter"),
        probe=directory("<results>/{sweep}/runs/{run}/probe"),
    log:
        "<logs>/{sweep}/train/{run}.log",
    benchmark:
        "<logs>/{sweep}/train/{run}.jsonl"
    threads: threads_of
    resources:
        gpu_slots=gpu_slots,
        gres=gres,
        mem_mb=mem_mb,
    params:
        spec=run_spec,
        noted=noted,
        placement=placement,
        run_dir=subpath(output.config, parent=True),
        bases=subpath(output.config, ancestor=4),
    message:
        "train {wildcards.run} (sweep {wildcards.sweep})"
    shell:
        "exec python scripts/train.py --spec {params.spec:q} --evaluation {params.noted:q}"
        " --run-dir {params.run_dir} --work work/{wildcards.sweep}/{wildcards.run} --bases {params.bases}/base"
        " {params.placement} > {log} 2>&1"
