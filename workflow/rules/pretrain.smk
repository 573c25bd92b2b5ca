# Load or train a network and measure it.
rule pretrain:
    input:
        inputs_of("pretrain"),
    output:
        f"{STUDY}/pretrain/{{job}}/run.json",
    params:
        words=words_of("pretrain"),
    log:
        f"{STUDY}/logs/pretrain/{{job}}.log",
    threads: threads_of("pretrain")
    resources:
        **resources_of("pretrain"),
    shell:
        "{RUN} --record {output} --threads {threads} {params.words} > {log} 2>&1"
