"""Pictures and the HTML report of results."""
