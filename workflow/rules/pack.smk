# Trains runs in one process, for their own jobs to fetch.
rule pack:
    input:
        base=pack_bases,
        data=pack_data,
    output:
        temp(touch("work/{sweep}/packs/{pack}")),
    log:
        "<logs>/{sweep}/pack/{pack}.log",
    benchmark:
        "<logs>/{sweep}/pack/{pack}.jsonl"
    threads: pack_threads
    resources:
        gpu_slots=pack_slots,
        gres=pack_gres,
        mem_mb=pack_mem_mb,
    params:
        placement=pack_placement,
        size=pack_size,
        bases=f"{chosen.results}/base",
    message:
        "train {params.size} runs together (pack {wildcards.pack}, sweep {wildcards.sweep})"
    shell:
        "exec python scripts/train_pack.py --plan {output}.json"
        " --work work/{wildcards.sweep} --bases {params.bases} {params.placement} > {log} 2>&1"
