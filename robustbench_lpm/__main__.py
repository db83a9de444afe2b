"""`python -m robustbench_lpm` is `lpmbench`."""

from robustbench_lpm.cli import main

if __name__ == "__main__":
    main()
