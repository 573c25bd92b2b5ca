# Calibrate a router and measure the switched network.
rule evaluate:
    input:
        inputs_of("evaluate"),
    output:
        f"{STUDY}/evaluate/{{job}}/run.json",
    params:
        words=words_of("evaluate"),
    log:
        f"{STUDY}/logs/evaluate/{{job}}.log",
    threads: threads_of("evaluate")
    resources:
        **resources_of("evaluate"),
    shell:
        "{RUN} --record {output} --threads {threads} {params.words} > {log} 2>&1"
