rule base:
    input:
        config=ancient("config/bases/{base}.yaml"),  # its values are in params.spec
        data=base_data,
    output:
        "<results>/base/{base}/base.json",
    log:
        "<logs>/base/{base}.log",
    benchmark:
        "<logs>/base/{base}.jsonl"
    threads: 2
    params:
        spec=base_spec,
        out=subpath(output[0], parent=True),
    message:
        "base model {wildcards.base}"
    shell:
        "exec python scripts/make_base.py --config {input.config} --out {params.out} > {log} 2>&1"
