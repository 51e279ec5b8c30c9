"""The runtime type checker of the tests: shapes and types of every call, an int being a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
