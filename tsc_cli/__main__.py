from tsc_cli.cli.main import main

main()
