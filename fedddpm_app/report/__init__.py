"""One HTML file about a run or a comparison: it opens offline, on a phone and on paper, and sends no request."""
