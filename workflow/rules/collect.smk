# Collect the ledgers over seeds, and what chains end with, as tables and a picture.
rule collect:
    input:
        [record(key) for key, job in JOBS.items() if job.rule == "compare" or job.chain],
    output:
        f"{STUDY}/collected.json",
    log:
        f"{STUDY}/logs/collect.log",
    threads: threads_of("collect")
    resources:
        **resources_of("collect"),
    shell:
        "{sys.executable:q} {workflow.basedir:q}/scripts/collect.py {config[file]:q} --records {STUDY:q}"
        " --output {output:q} > {log:q} 2>&1"
