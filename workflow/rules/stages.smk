# One rule for each stage of matrices and of chains.
for stage in matrix.RULES:

    rule:
        name:
            stage
        input:
            inputs_of(stage),
        output:
            f"{STUDY}/{stage}/{{job}}/run.json",
        params:
            words=words_of(stage),
        log:
            f"{STUDY}/logs/{stage}/{{job}}.log",
        threads: threads_of(stage)
        resources:
            **resources_of(stage),
        shell:
            "{RUN} --record {output:q} --threads {threads} {params.words} > {log:q} 2>&1"
