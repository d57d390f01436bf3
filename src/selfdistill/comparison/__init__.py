"""Methods on equal terms: plan and run the arms, numbers with intervals, the page."""
