rule eval_run:
    input:
        config=ancient("<results>/{sweep}/runs/{run}/config.json"),
        metrics="<results>/{sweep}/runs/{run}/metrics.jsonl",
        outcome="<results>/{sweep}/runs/{run}/outcome.json",
        adapter=ancient("<results>/{sweep}/runs/{run}/adapter"),  # a folder is compared by time alone, which a copy changes
        data=heldout_data,
    output:
        summary="<results>/{sweep}/runs/{run}/eval.json",
        samples="<results>/{sweep}/runs/{run}/eval_samples.jsonl",
    log:
        "<logs>/{sweep}/eval/{run}.log",
    benchmark:
        "<logs>/{sweep}/eval/{run}.jsonl"
    threads: threads_of
    resources:
        gpu_slots=gpu_slots,
        gres=gres,
        mem_mb=mem_mb,
    params:
        spec=evaluation_spec,
        meaning=EVALUATION_MEANING,
        placement=placement,
        run_dir=subpath(output.summary, parent=True),
    message:
        "evaluate {wildcards.run} (sweep {wildcards.sweep})"
    shell:
        "exec python scripts/eval_run.py {params.run_dir} --evaluation {params.spec:q}"
        " --work work/{wildcards.sweep}/{wildcards.run} {params.placement} > {log} 2>&1"
