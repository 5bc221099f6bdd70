# A plain `snakemake` at the root makes the sweeps of config/config.yaml. An included file cannot set the
# default target, hence the rule.
include: "workflow/Snakefile"


rule default:
    default_target: True
    input:
        rules.all.input,
