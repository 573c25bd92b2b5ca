# Rank the filters.
rule assess:
    input:
        inputs_of("assess"),
    output:
        f"{STUDY}/assess/{{job}}/run.json",
    params:
        words=words_of("assess"),
    log:
        f"{STUDY}/logs/assess/{{job}}.log",
    threads: threads_of("assess")
    resources:
        **resources_of("assess"),
    shell:
        "{RUN} --record {output} --threads {threads} {params.words} > {log} 2>&1"
