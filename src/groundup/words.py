"""Numbers and values in words, for messages, tables and pages."""


def plural(number: int, noun: str) -> str:
    """
    >>> plural(1, "document"), plural(1200, "document")
    ('1 document', '1,200 documents')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def byte_size(n_bytes: float) -> str:
    """
    >>> byte_size(812), byte_size(56_700_000), byte_size(1_234_000_000)
    ('812 bytes', '56.7 MB', '1.23 GB')
    """
    for unit, name, digits in ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1)):
        if n_bytes >= unit:
            return f"{n_bytes / unit:,.{digits}f} {name}"
    return f"{n_bytes:.0f} bytes"


def duration(seconds: float) -> str:
    """
    >>> duration(8.25), duration(113.7), duration(500), duration(50_000), duration(5e6)
    ('8.2 seconds', '114 seconds', '8.3 minutes', '13.9 hours', '57.9 days')
    """
    for unit, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.{0 if seconds >= 10 else 1}f} seconds"


def short_value(value: object) -> str:
    """A setting's value as a person writes it, numbers to six digits.

    >>> short_value(0.0001), short_value(64), short_value("muon"), short_value(True)
    ('0.0001', '64', 'muon', 'true')
    """
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)
