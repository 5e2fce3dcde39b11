"""Only test_faults.py is collected: the other files are a program, run with ``make faults``."""

collect_ignore = ["run.py", "faults_job.py", "faults_kills.py", "faults_media.py"]
