# Measure all networks of a cell of the matrix on the same images.
rule compare:
    input:
        inputs_of("compare"),
    output:
        f"{STUDY}/compare/{{job}}/run.json",
    params:
        words=words_of("compare"),
    log:
        f"{STUDY}/logs/compare/{{job}}.log",
    threads: threads_of("compare")
    resources:
        **resources_of("compare"),
    shell:
        "{RUN} --record {output} --threads {threads} {params.words} > {log} 2>&1"
