# Train a patch, or correct the whole network.
rule correct:
    input:
        inputs_of("correct"),
    output:
        f"{STUDY}/correct/{{job}}/run.json",
    params:
        words=words_of("correct"),
    log:
        f"{STUDY}/logs/correct/{{job}}.log",
    threads: threads_of("correct")
    resources:
        **resources_of("correct"),
    shell:
        "{RUN} --record {output} --threads {threads} {params.words} > {log} 2>&1"
