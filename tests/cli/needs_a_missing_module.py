"""A command whose own module is there, and one that it needs is not."""

import no_module_of_this_name


def run() -> None:
    no_module_of_this_name.run()
